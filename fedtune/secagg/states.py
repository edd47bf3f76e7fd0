"""The states of a client in one round, each holding exactly the secrets that are alive in it.

    Idle ─ hold ─▶ Held ─ R0 ─▶ Advertised ─ R1 ─▶ Shared ─ R2 ─▶ Masked ─ R3 ─▶ Confirmed ─ R4 ─▶ Opened
                    ▲               │                │              │               ╎
                    └── a failed check, expiry, or a later attempt ─┘               ╎
    Idle ◀──────────── a failed check or expiry, now that the update is spent ──────┘

Nothing here is ever written to disk, put into Flower's context or logged (`repr` shows no field). Leaving a
state drops the last reference to its secrets; Python cannot guarantee that the memory is overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from fedtune.secagg.derivation import KeySchedule
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.graph import SharingGraph
from fedtune.secagg.messages import Binding
from fedtune.secagg.policy import Policy
from fedtune.secagg.roster import Roster
from fedtune.secagg.rounding import EncodedUpdate
from fedtune.secagg.spent import UpdateOrigin

__all__ = [
    "PPM",
    "Advertised",
    "Attempt",
    "Confirmed",
    "DealtShares",
    "Held",
    "Idle",
    "Masked",
    "Opened",
    "RoundFacts",
    "Shared",
    "State",
    "expected_binding",
]


@dataclass(frozen=True, kw_only=True)
class RoundFacts:
    """What the site itself knows about the round it trained for; never taken from the server.

    Attributes:
        run: Name of the run.
        round: Number of the round, from 1.
        origin: Hashes of base, adapter, configuration and samples, computed here.
        audit_head: Head of the site's audit chain, 32 bytes.
        made_of: What the update was made of, where that is not what the round started from: the journal
            knows it by this.
    """

    run: str
    round: int
    origin: UpdateOrigin
    audit_head: bytes
    made_of: UpdateOrigin | None = None

    @property
    def spent_as(self) -> UpdateOrigin:
        """What the journal of opened updates writes down."""
        return self.made_of or self.origin


@dataclass(frozen=True, kw_only=True, repr=False)
class Idle:
    """Nothing is held."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Held:
    """Training is done; the encoded update waits for a cohort, and for another after a failed attempt."""

    facts: RoundFacts
    encoding: Encoding
    update: EncodedUpdate


@dataclass(frozen=True, kw_only=True, repr=False)
class Advertised:
    """R0 is answered: two key pairs exist for this attempt.

    Attributes:
        advert: The signed message as it was sent.
    """

    binding: Binding
    encoded_binding: bytes
    mask_private: bytes
    seal_private: bytes
    advert: bytes


@dataclass(frozen=True, kw_only=True, repr=False)
class Attempt:
    """What U1 fixes; no secrets.

    Attributes:
        binding: The attempt.
        transcript: R.
        identities: Members in the order that gives them their indices.
        own: This client's index.
        graph: Who shares with whom.
        neighbours: This client's, ascending.
    """

    binding: Binding
    transcript: bytes
    identities: tuple[bytes, ...]
    own: int
    graph: SharingGraph
    neighbours: tuple[int, ...]

    @property
    def members(self) -> int:
        return len(self.identities)


@dataclass(frozen=True, kw_only=True, repr=False)
class Shared:
    """R1 is answered: shares of b and of the masking key are dealt, the private keys are gone.

    Attributes:
        pair_keys: For each neighbour, the key of the mask shared with it.
        opening_keys: For each neighbour, the key that opens what it seals for this client.
    """

    attempt: Attempt
    schedule: KeySchedule
    b: bytes
    pair_keys: tuple[bytes, ...]
    opening_keys: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, repr=False)
class DealtShares:
    """Both shares that one neighbour dealt, with the salts of its commitments."""

    b_share: bytes
    b_salt: bytes
    key_share: bytes
    key_salt: bytes


@dataclass(frozen=True, kw_only=True, repr=False)
class Masked:
    """R2 is answered: the masked vector is out, the mask keys are gone."""

    attempt: Attempt
    u2: frozenset[int]
    b: bytes
    dealt: dict[int, DealtShares] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class Confirmed:
    """R3 is answered: the update is spent and gone; the shares wait for the others' signatures."""

    attempt: Attempt
    u2: frozenset[int]
    u3: frozenset[int]
    b: bytes
    dealt: dict[int, DealtShares] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class Opened:
    """R4 is answered, once; only that answer is kept, for the same question."""

    transcript: bytes


State = Idle | Held | Advertised | Shared | Masked | Confirmed | Opened

PPM: Final = 1_000_000


def expected_binding(
    facts: RoundFacts, *, encoding: Encoding, policy: Policy, roster: Roster, attempt: int
) -> Binding:
    """What an attempt at this round must be about, from what the site itself knows."""
    return Binding(
        run=facts.run,
        round=facts.round,
        attempt=attempt,
        ring_bits=encoding.ring_bits,
        prg=policy.prg,
        corrupt_ppm=round(policy.corrupt_fraction * PPM),
        drop_ppm=round(policy.drop_fraction * PPM),
        base_hash=facts.origin.base,
        adapter_hash=facts.origin.adapter,
        config_hash=facts.origin.config,
        encoding_hash=encoding.hash,
        roster_hash=roster.hash,
    )
