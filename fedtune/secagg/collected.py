"""What the server has collected in one attempt, and who the members turned out to be."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.derivation import KeySchedule
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.graph import SharingGraph
from fedtune.secagg.messages import Advert, Binding, Kind
from fedtune.secagg.policy import Policy
from fedtune.secagg.problems import problem, refusal
from fedtune.secagg.roster import Roster
from fedtune.secagg.states import PPM
from fedtune.secagg.trips import SharesAnswer

__all__ = ["AttemptRules", "Cohort", "Collected", "Fault", "SecureSum", "Trip"]


class Trip(Enum):
    """Where an attempt stands; for the five trips the value is the kind of answer that is awaited."""

    ADVERTISE = Kind.ADVERT
    SHARE = Kind.SHARES
    MASK = Kind.MASKED
    CONFIRM = Kind.CONFIRMED
    UNMASK = Kind.UNMASKED
    DONE = "done"
    FAILED = "failed"
    BURNT = "burnt"


@dataclass(frozen=True, kw_only=True)
class AttemptRules:
    """What is fixed before an attempt starts.

    Attributes:
        binding: What the attempt is about; the clients compare it with what they know themselves.
        encoding: The rules by which all members encode.
        roster: The version in force.
        policy: The coordinator's own; its fractions, cipher and groups are those of the members.
        quorum: Fewest members of a sum that the coordinator wants; with fewer nothing is opened.

    Raises:
        SecureAggregationError: FT906, the binding is not about this encoding, roster and policy.
    """

    binding: Binding
    encoding: Encoding
    roster: Roster
    policy: Policy
    quorum: int = 0

    def __post_init__(self) -> None:
        binding, policy = self.binding, self.policy
        pairs = {
            "encoding_hash": (binding.encoding_hash, self.encoding.hash),
            "ring_bits": (binding.ring_bits, self.encoding.ring_bits),
            "roster_hash": (binding.roster_hash, self.roster.hash),
            "prg": (binding.prg, policy.prg),
            "corrupt_ppm": (binding.corrupt_ppm, round(policy.corrupt_fraction * PPM)),
            "drop_ppm": (binding.drop_ppm, round(policy.drop_fraction * PPM)),
        }
        different = [name for name, (bound, own) in pairs.items() if bound != own]
        if different:
            raise SecureAggregationError(
                [problem("FT906", f"the binding is of another {name}", where=name) for name in different]
            )


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A message that failed a check, and whose it was.

    Attributes:
        member: Identity of the sender, or of the dealer that a check convicts.
        site: Its name in the roster.
        trip: The answer that was wrong.
        problem: What was wrong with it.
    """

    member: bytes
    site: str
    trip: Kind
    problem: Problem


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """U1 once it is fixed.

    Attributes:
        identities: Ascending; a member's index is its place here.
        index: Identity to index.
        adverts: Signed ADVERT messages in that order.
        keys: The adverts' contents.
        transcript: R.
        schedule: Derives the attempt's keys.
        graph: Who shares with whom.
        neighbours: For each member, ascending.
    """

    identities: tuple[bytes, ...]
    index: dict[bytes, int]
    adverts: tuple[bytes, ...]
    keys: tuple[Advert, ...]
    transcript: bytes
    schedule: KeySchedule
    graph: SharingGraph
    neighbours: tuple[tuple[int, ...], ...]

    @property
    def members(self) -> int:
        return len(self.identities)

    def place(self, dealer: int, receiver: int) -> int:
        """Position of a receiver among its dealer's neighbours: that of its record in the dealer's answer."""
        return bisect_left(self.neighbours[dealer], receiver)


@dataclass(frozen=True, kw_only=True)
class SecureSum:
    """The opened sum of a round.

    Attributes:
        vector: (parameters,) sum of the encoded updates in the ring.
        lanes: Sums of count, weight and metrics.
        cohort: Identities whose updates are in it (U3).
    """

    vector: NDArray[np.unsignedinteger[Any]]
    lanes: NDArray[np.uint64]
    cohort: tuple[bytes, ...]


@dataclass(kw_only=True)
class Collected:
    """Everything valid that has arrived; grows from trip to trip.

    Attributes:
        adverts: R0, by identity: the signed message and its content.
        shares: R1, by member.
        vector: R2: running sum of the masked vectors, so that memory does not grow with the cohort.
        lanes: R2: running sum of the masked lanes.
        masked: R2: members whose vector is in the sum (or waits in `waiting`), with their statements on U2.
        waiting: R2: masked bytes of members of a group, which count only if the whole group arrives.
        confirmations: R3: signature by member.
        own_b: R4: valid b by its own member.
        released: R4: for each kind of secret and dealer, valid shares by coordinate.
        answered: Members that have answered the present trip, well or badly.
        accusations: R2: accuser to the dealers whose shares it could not use.
        faults: Messages that failed a check.
        fixed: U1, once R0 is closed.
        u2: Members that dealt shares, once R1 is closed.
        u3: Members whose vectors are in the sum, once R2 is closed.
        total: The opened sum, once R4 is closed.
    """

    adverts: dict[bytes, tuple[bytes, Advert]] = field(default_factory=dict)
    shares: dict[int, SharesAnswer] = field(default_factory=dict)
    vector: NDArray[np.unsignedinteger[Any]]
    lanes: NDArray[np.uint64]
    masked: dict[int, bytes] = field(default_factory=dict)
    waiting: dict[int, bytes] = field(default_factory=dict)
    confirmations: dict[int, bytes] = field(default_factory=dict)
    own_b: dict[int, bytes] = field(default_factory=dict)
    released: dict[Literal["b", "key"], dict[int, dict[int, bytes]]] = field(
        default_factory=lambda: {"b": {}, "key": {}}
    )
    answered: set[bytes] = field(default_factory=set)
    accusations: dict[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    u2: frozenset[int] = frozenset()
    u3: frozenset[int] = frozenset()
    fixed: Cohort | None = None
    total: SecureSum | None = None

    @property
    def cohort(self) -> Cohort:
        """U1 with its keys and graph.

        Raises:
            SecureAggregationError: FT902, the adverts are still being collected.
        """
        if self.fixed is None:
            raise refusal("FT902", "the cohort is not fixed before the adverts are in")
        return self.fixed

    @classmethod
    def empty(cls, encoding: Encoding) -> Collected:
        return cls(
            vector=np.zeros(encoding.size, dtype=encoding.dtype),
            lanes=np.zeros(len(encoding.lane_names), dtype=np.uint64),
        )

    def add_masked(self, masked: bytes | memoryview) -> None:
        """Add one member's masked vector and lanes to the running sum, in the ring."""
        split = self.vector.nbytes
        self.vector += np.frombuffer(masked[:split], dtype=self.vector.dtype)
        self.lanes += np.frombuffer(masked[split:], dtype="<u8")
