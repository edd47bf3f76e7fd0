"""A cohort in one process, for the benchmark: real identities, clients and messages, random updates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedtune.secagg.client import SecureAggregationClient
from fedtune.secagg.cohorts import CohortLog
from fedtune.secagg.collected import AttemptRules
from fedtune.secagg.encoding import Encoding, RingBits, greatest_levels
from fedtune.secagg.identity import Identity
from fedtune.secagg.layout import TensorBound
from fedtune.secagg.messages import Kind, open_frame
from fedtune.secagg.policy import Policy
from fedtune.secagg.roster import GENESIS, Roster, sign_entry
from fedtune.secagg.rounding import encode_update
from fedtune.secagg.server import ServerAttempt
from fedtune.secagg.spent import SpentJournal, UpdateOrigin
from fedtune.secagg.states import RoundFacts, expected_binding

__all__ = ["Parties", "uniform_encoding"]

_FEDERATION = "benchmark"


def uniform_encoding(
    parameters: int, *, members: int, ring_bits: RingBits = 32, max_weight: int = 1, bound: float = 1e-3
) -> Encoding:
    """One tensor ``delta`` with the finest levels that `members` allow."""
    return Encoding(
        tensors=(TensorBound(name="delta", shape=(parameters,), bound=bound),),
        ring_bits=ring_bits,
        levels=greatest_levels(ring_bits, members),
        max_cohort=members,
        max_weight=max_weight,
    )


class Parties:
    """Members by number, all of one roster, each with its journals in a folder.

    Args:
        count: Members.
        encoding: What they encode by.
        folder: For their journals.
    """

    def __init__(self, count: int, *, encoding: Encoding, folder: Path) -> None:
        self.encoding = encoding
        identities = sorted((Identity.generate() for _ in range(count)), key=lambda item: item.public)
        entries = tuple(
            sign_entry(identity, federation=_FEDERATION, site=f"site-{number}")
            for number, identity in enumerate(identities)
        )
        self.roster = Roster(federation=_FEDERATION, version=1, previous=GENESIS, entries=entries)
        self.policy = Policy(k_min=3)
        self.number = {identity.public: number for number, identity in enumerate(identities)}
        self.clients = [
            SecureAggregationClient(
                identity=identity,
                policy=self.policy,
                roster=self.roster,
                spent=SpentJournal(folder / f"{number}.spent"),
                cohorts=CohortLog(folder / f"{number}.cohorts"),
            )
            for number, identity in enumerate(identities)
        ]
        self._seeds = [hashlib.sha256(identity.public).digest() for identity in identities]
        self._parts: dict[int, tuple[NDArray[Any], NDArray[np.uint64]]] = {}

    def hold_random(self, *, std: float) -> None:
        """Give every client an update of normal entries."""
        for number, client in enumerate(self.clients):
            rng = np.random.default_rng(number)
            values = (rng.standard_normal(self.encoding.size) * std).astype(np.float32)
            update = encode_update({"delta": values}, self.encoding)
            self._parts[number] = (update.vector, update.lanes)
            client.hold(update, self.encoding, self._facts(number))

    def _facts(self, number: int) -> RoundFacts:
        same = hashlib.sha256(b"benchmark").digest()
        origin = UpdateOrigin(base=same, adapter=same, config=same, samples=self._seeds[number])
        return RoundFacts(run="benchmark", round=1, origin=origin, audit_head=same)

    def attempt(self) -> ServerAttempt:
        """The first attempt of the round, with everybody invited."""
        binding = expected_binding(
            self._facts(0), encoding=self.encoding, policy=self.policy, roster=self.roster, attempt=1
        )
        rules = AttemptRules(binding=binding, encoding=self.encoding, roster=self.roster, policy=self.policy)
        return ServerAttempt(rules, invited=frozenset(self.number))

    def send(
        self, *, absent: Mapping[Kind, frozenset[int]] | None = None
    ) -> Callable[[Mapping[bytes, bytes]], Iterable[bytes]]:
        """A transport to the clients; `absent` names who is gone from a trip on."""
        gone: set[int] = set()

        def deliver(requests: Mapping[bytes, bytes]) -> Iterable[bytes]:
            for identity, request in requests.items():
                gone.update((absent or {}).get(open_frame(request)[0], ()))
                number = self.number[identity]
                if number not in gone:
                    yield self.clients[number].handle(request)

        return deliver

    def plain_sum(self, members: Iterable[int]) -> tuple[NDArray[Any], NDArray[np.uint64]]:
        """The sum of these members' encoded updates without any protocol."""
        vector = np.zeros(self.encoding.size, dtype=self.encoding.dtype)
        lanes = np.zeros(len(self.encoding.lane_names), dtype=np.uint64)
        for member in members:
            vector += self._parts[member][0]
            lanes += self._parts[member][1]
        return vector, lanes
