"""A federation for tests of secure aggregation: identities, roster, clients and an attempt, all real."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fedtune.secagg.client import SecureAggregationClient
from fedtune.secagg.cohorts import CohortLog
from fedtune.secagg.collected import AttemptRules
from fedtune.secagg.encoding import Encoding, greatest_levels
from fedtune.secagg.identity import Identity
from fedtune.secagg.layout import tensor_bounds
from fedtune.secagg.messages import Kind, open_frame
from fedtune.secagg.policy import Policy
from fedtune.secagg.roster import GENESIS, Roster, sign_entry
from fedtune.secagg.rounding import EncodedUpdate, encode_update
from fedtune.secagg.rounds import finish_attempt
from fedtune.secagg.server import ServerAttempt
from fedtune.secagg.spent import SpentJournal, UpdateOrigin
from fedtune.secagg.states import RoundFacts, expected_binding

FEDERATION = "test federation"
BOUND = 1e-2


def hash_of(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@functools.lru_cache(maxsize=8)
def roster_of(
    count: int, weights: tuple[int, ...] = (), groups: tuple[str, ...] = ()
) -> tuple[Roster, tuple[Identity, ...]]:
    """A roster of `count` sites and their identities, in the order of the roster."""
    identities = tuple(sorted((Identity.generate() for _ in range(count)), key=lambda item: item.public))
    entries = tuple(
        sign_entry(
            identity,
            federation=FEDERATION,
            site=f"site-{number:04}",
            weight=weights[number] if weights else 1,
            group=groups[number] if groups else "",
        )
        for number, identity in enumerate(identities)
    )
    return Roster(federation=FEDERATION, version=1, previous=GENESIS, entries=entries), identities


def small_encoding(count: int, *, ring_bits: int = 32, size: int = 40, max_weight: int = 1) -> Encoding:
    shapes = {"a": (size // 4, 2), "b": (size - size // 4 * 2,)}
    return Encoding(
        tensors=tensor_bounds(shapes, BOUND, vocabulary=49152),
        ring_bits=ring_bits,
        levels=greatest_levels(ring_bits, max(count, 2)),
        max_cohort=max(count, 2),
        max_weight=max_weight,
    )


def random_update(encoding: Encoding, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        tensor.name: (rng.standard_normal(tensor.shape) * tensor.bound / 3).astype(np.float32)
        for tensor in encoding.tensors
    }


@dataclass
class Federation:
    """Clients by index, what they hold, and the rules of the attempt."""

    identities: tuple[Identity, ...]
    roster: Roster
    policy: Policy
    encoding: Encoding
    updates: list[EncodedUpdate]
    clients: list[SecureAggregationClient]
    facts: list[RoundFacts]
    folder: Path
    now: list[float] = field(default_factory=lambda: [0.0])

    @property
    def members(self) -> frozenset[bytes]:
        return frozenset(identity.public for identity in self.identities)

    def rules(self, attempt: int = 1, **changes: object) -> AttemptRules:
        binding = expected_binding(
            self.facts[0], encoding=self.encoding, policy=self.policy, roster=self.roster, attempt=attempt
        )
        return AttemptRules(
            binding=replace(binding, **changes),
            encoding=self.encoding,
            roster=self.roster,
            policy=self.policy,
        )

    def attempt(self, attempt: int = 1, **changes: object) -> ServerAttempt:
        return ServerAttempt(self.rules(attempt, **changes), invited=self.members)

    def index(self, identity: bytes) -> int:
        return [item.public for item in self.identities].index(identity)

    def client(self, index: int, *, identity: Identity | None = None) -> SecureAggregationClient:
        """A fresh client process at a site: its disk is kept, its memory is not."""
        return SecureAggregationClient(
            identity=identity or self.identities[index],
            policy=self.policy,
            roster=self.roster,
            spent=SpentJournal(self.folder / f"{index}.spent"),
            cohorts=CohortLog(self.folder / f"{index}.cohorts"),
            clock=lambda: self.now[0],
        )

    def hold(self, indices: Iterable[int] | None = None) -> None:
        for index in range(len(self.clients)) if indices is None else indices:
            self.clients[index].hold(self.updates[index], self.encoding, self.facts[index])

    def plain_sum(self, indices: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        vector = np.zeros(self.encoding.size, dtype=self.encoding.dtype)
        lanes = np.zeros(len(self.encoding.lane_names), dtype=np.uint64)
        for index in indices:
            vector += self.updates[index].vector
            lanes += self.updates[index].lanes
        return vector, lanes

    def send(
        self, *, absent: Mapping[Kind, frozenset[int]] | None = None, tamper: Callable | None = None
    ) -> Callable[[Mapping[bytes, bytes]], Iterable[bytes]]:
        """A transport; `absent` names who does not answer from a trip on; `tamper` may change a request."""
        gone: set[int] = set()

        def deliver(requests: Mapping[bytes, bytes]) -> Iterable[bytes]:
            for identity, request in requests.items():
                index = self.index(identity)
                kind, _ = open_frame(request)
                gone.update((absent or {}).get(kind, ()))
                if index in gone:
                    continue
                seen = request if tamper is None else tamper(kind, index, request)
                yield self.clients[index].handle(seen)

        return deliver

    def run(self, **options: object) -> ServerAttempt:
        attempt = self.attempt()
        finish_attempt(attempt, self.send(**options))
        return attempt


def federation(
    folder: Path,
    count: int,
    *,
    policy: Policy | None = None,
    ring_bits: int = 32,
    size: int = 40,
    weights: tuple[int, ...] = (),
    groups: tuple[str, ...] = (),
    hold: bool = True,
) -> Federation:
    roster, identities = roster_of(count, weights, groups)
    policy = policy or Policy(k_min=3, groups=bool(groups))
    encoding = small_encoding(count, ring_bits=ring_bits, size=size, max_weight=max(weights, default=1))
    rng = np.random.default_rng(count)
    updates = [
        encode_update(random_update(encoding, rng), encoding, weight=weights[index] if weights else 1)
        for index in range(count)
    ]
    facts = [
        RoundFacts(
            run="run-1",
            round=1,
            origin=UpdateOrigin(
                base=hash_of("base"),
                adapter=hash_of("adapter"),
                config=hash_of("config"),
                samples=hash_of(f"samples {index}"),
            ),
            audit_head=os.urandom(32),
        )
        for index in range(count)
    ]
    made = Federation(
        identities=identities,
        roster=roster,
        policy=policy,
        encoding=encoding,
        updates=updates,
        clients=[],
        facts=facts,
        folder=folder,
    )
    made.clients = [made.client(index) for index in range(count)]
    if hold:
        made.hold()
    return made
