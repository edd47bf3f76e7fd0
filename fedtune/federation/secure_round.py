"""The coordinator's part of a secure round: train, agree on keys, open the sum, or name what was burnt.

The first trip travels with the request to train, so a round costs four trips more than a plain one. Journals
of attempts lie in the run's folder until the round's result is on disk: a coordinator that is killed after
the point of no return finishes the attempt when it comes back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict

from fedtune.config.schema import Config
from fedtune.errors import FedtuneError, SecureAggregationError
from fedtune.federation.dialogue import Dialogue, Stage, flower_failure
from fedtune.federation.secure import policy_of, round_encoding, training_hash
from fedtune.federation.wire import (
    RECORD,
    Failure,
    TrainReply,
    TrainRequest,
    content,
    frame_of,
    parse,
    parse_reply,
    with_frame,
)
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import SecureSum
from fedtune.secagg.collected import AttemptRules, Trip
from fedtune.secagg.hashes import adapter_hash
from fedtune.secagg.identity import Identity
from fedtune.secagg.messages import Kind, Refusal, Signed, open_frame
from fedtune.secagg.roster import Roster, RosterEntry
from fedtune.secagg.rounding import DecodedMean, decode_mean
from fedtune.secagg.rounds import RoundOutcome, discard_journals, journal_path, secure_round
from fedtune.secagg.server import ServerAttempt
from fedtune.secagg.spent import UpdateOrigin
from fedtune.secagg.states import RoundFacts, expected_binding
from fedtune.secagg.transcript import signed_transcript
from fedtune.updates.codec import wire_bytes

__all__ = ["OpenedSum", "SecureCoordinator"]

_NONE = bytes(32)
_SLACK_BYTES = 1 << 20
_BYTES_A_MEMBER = 1 << 10

Trained = Callable[[str, TrainReply, int, int], None]
"""Told of a site that trained: its name and reply, the bytes that it sent and that it received."""


@dataclass(frozen=True, kw_only=True)
class OpenedSum:
    """What a round gave.

    Attributes:
        mean: Weighted mean of the clipped updates.
        weights: Name of each site in the sum to its declared weight.
    """

    mean: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    weights: Mapping[str, float]


@dataclass(kw_only=True)
class SecureCoordinator:
    """Opens one sum for each round.

    Attributes:
        folder: Journals and transcripts of the run.
        latest: Reads the version of the roster that is in force.
        identity: Signs the transcripts.
        config: The whole configuration.
        spec: Names, shapes and dtype of the adapter.
    """

    folder: Path
    latest: Callable[[], Roster]
    identity: Identity
    config: Config
    spec: AdapterSpec
    roster: Roster = field(init=False)

    def __post_init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Take the version of the roster that is in force now: sites come and go between rounds.

        Raises:
            SecureAggregationError: FT918, it cannot be read.
        """
        self.roster = self.latest()

    def weight(self, name: str) -> float:
        """Return what a site weighs: 1, or what it declares in the roster."""
        weighted = self.config.aggregation.weighting == "examples"
        return float(self._entries[name].weight) if weighted else 1.0

    @property
    def names(self) -> frozenset[str]:
        """Sites of the roster."""
        return frozenset(self._entries)

    @property
    def _entries(self) -> dict[str, RosterEntry]:
        return {entry.site: entry for entry in self.roster.entries}

    def open_sum(
        self,
        sites: Dialogue,
        request: TrainRequest,
        adapter: Adapter,
        arrays: ArrayRecord,
        *,
        cohort: tuple[str, ...],
        quorum: int,
        base_hash: str,
        trained: Trained,
    ) -> OpenedSum | None:
        """Let a cohort train and open the sum of its updates.

        Returns:
            The sum; None where the round is burnt, which is recorded.

        Raises:
            FederationError: FT607, too few sites trained.
            SecureAggregationError: FT920, no attempt succeeded and nothing was opened.
        """
        encoding = round_encoding(self.config, self.spec, request.factors, self.roster)
        origin = UpdateOrigin(
            base=bytes.fromhex(base_hash),
            adapter=adapter_hash(adapter),
            config=training_hash(self.config, request),
            samples=_NONE,
        )
        facts = RoundFacts(run=self.config.name, round=request.round, origin=origin, audit_head=_NONE)
        policy = policy_of(self.config)

        def rules(attempt: int) -> AttemptRules:
            binding = expected_binding(
                facts, encoding=encoding, policy=policy, roster=self.roster, attempt=attempt
            )
            return AttemptRules(
                binding=binding, encoding=encoding, roster=self.roster, policy=policy, quorum=quorum
            )

        courier = _Courier(
            sites=sites,
            config=self.config,
            roster=self.roster,
            request=request,
            arrays=arrays,
            quorum=quorum,
            trained=trained,
            most_bytes=encoding.nbytes + _SLACK_BYTES + _BYTES_A_MEMBER * len(self.roster.entries),
        )
        invited = frozenset(self._entries[name].identity for name in cohort)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            outcome = secure_round(
                rules(self._next_attempt(request.round, rules)),
                invited=invited,
                send=courier,
                attempts=self.config.secagg.attempts,
                journals=self.folder,
            )
        except SecureAggregationError as error:
            if error.problems[0].code != "FT921":
                raise
            reason = "; ".join(dict.fromkeys(problem.what for problem in error.problems))
            sites.record(courier.ended(reason=reason))
            return None
        mean = decode_mean(outcome.total.vector, outcome.total.lanes, encoding)
        return self._opened(sites, courier, outcome, mean)

    def _opened(
        self, sites: Dialogue, courier: _Courier, outcome: RoundOutcome, mean: DecodedMean
    ) -> OpenedSum:
        for fault in outcome.faults:
            if fault.trip is not Kind.REFUSED:  # those were recorded as they came
                found = fault.problem
                sites.fail("secagg", courier.request.round, fault.site, found.code, found.what)
        clients = tuple(sorted(self.roster.site(identity) for identity in outcome.total.cohort))
        with (self.folder / "transcripts.jsonl").open("a", encoding="utf-8") as file:
            file.write(signed_transcript(outcome.attempt, self.identity) + "\n")
        sites.record(courier.ended(clients=clients, attempts=outcome.attempts))
        return OpenedSum(mean=mean.tensors, weights={name: self.weight(name) for name in clients})

    def _next_attempt(self, round_number: int, rules: Callable[[int], AttemptRules]) -> int:
        """Return the attempt to go on with: one that may have opened updates, else one that is new.

        An attempt that a crash interrupted before that point is given up: its members may have come back
        without their keys, and a new attempt holds everybody.

        Raises:
            SecureAggregationError: FT921, a finished attempt has burnt the round.
        """
        number = 1
        while (path := journal_path(self.folder, round_number=round_number, attempt=number)).exists():
            try:
                attempt = ServerAttempt.recover(path, rules(number))
            except SecureAggregationError as error:
                if error.problems[0].code == "FT921":
                    return number
            else:
                if attempt.trip in (Trip.CONFIRM, Trip.UNMASK, Trip.DONE):
                    return number
            number += 1
        return number

    def finish(self, round_number: int) -> None:
        """Forget a round's journals, now that its result is on disk and named."""
        discard_journals(self.folder, round_number=round_number)


@dataclass(kw_only=True)
class _Courier:
    """Carries one round's requests to the sites and their answers back; the first to each site trains it."""

    sites: Dialogue
    config: Config
    roster: Roster
    request: TrainRequest
    arrays: ArrayRecord
    quorum: int
    trained: Trained
    most_bytes: int
    _asked: set[str] = field(default_factory=set)
    _attempts: int = 0
    _uplink: int = 0
    _downlink: int = 0
    _since: float = field(default_factory=time.perf_counter)

    def __call__(self, requests: Mapping[bytes, bytes]) -> Iterable[bytes]:
        by_site = {self.roster.site(identity): frame for identity, frame in requests.items()}
        if not by_site:
            return []
        kind, _ = open_frame(next(iter(by_site.values())))
        untrained = {}
        if kind is Kind.ADVERTISE:
            self._attempts += 1
            untrained = {name: frame for name, frame in by_site.items() if name not in self._asked}
        replies = self._train(untrained) if untrained else []
        rest = {name: frame for name, frame in by_site.items() if name not in untrained}
        return [*replies, *self._exchange(rest)]

    def ended(
        self, *, clients: tuple[str, ...] = (), reason: str | None = None, attempts: int | None = None
    ) -> SecureSum:
        """Return the record of how the round's protocol ended."""
        return SecureSum(
            round=self.request.round,
            opened=reason is None,
            reason=reason,
            clients=clients,
            attempts=attempts or max(1, self._attempts),
            seconds=time.perf_counter() - self._since,
            uplink_bytes=self._uplink,
            downlink_bytes=self._downlink,
        )

    def _train(self, frames: Mapping[str, bytes]) -> list[bytes]:
        """Ask for training, and in the same message for an advert."""
        self._asked |= frames.keys()
        received = wire_bytes(self.arrays)
        adverts: dict[str, bytes] = {}

        def take(name: str, message: Message) -> None:
            failure = flower_failure(message)
            reply = parse_reply(message, TrainReply) if failure is None else failure
            if isinstance(reply, Failure):
                self._fail("train", name, reply.code, reply.reason)
                return
            advert = self._frame(name, message)
            self.trained(name, reply, len(advert), received + len(frames[name]))
            adverts[name] = advert

        contents = {
            name: with_frame(content(self.request, self.arrays), frame) for name, frame in frames.items()
        }
        self.sites.exchange("train", self.request.round, contents, take)
        self.sites.require(self.request.round, adverts, self.quorum)
        self._since = time.perf_counter()
        return list(adverts.values())

    def _exchange(self, frames: Mapping[str, bytes]) -> list[bytes]:
        answers: list[bytes] = []

        def take(name: str, message: Message) -> None:
            failure = flower_failure(message)
            if failure is None and RECORD in message.content:
                failure = parse(message, Failure)
            if failure is not None:
                self._fail("secagg", name, failure.code, failure.reason)
                return
            answers.append(self._frame(name, message))
            self._uplink += len(answers[-1])

        self._downlink += sum(len(frame) for frame in frames.values())
        self.sites.exchange(
            "secagg",
            self.request.round,
            {name: with_frame(RecordDict(), frame) for name, frame in frames.items()},
            take,
            timeout_seconds=self.config.secagg.trip_timeout_seconds,
        )
        return answers

    def _frame(self, name: str, message: Message) -> bytes:
        """Return a site's answer; a refusal in it is recorded with its reason."""
        frame = frame_of(message, at_most=self.most_bytes)
        try:
            signed = Signed.read(frame)
            refused = Refusal.decode(signed.body) if signed.kind is Kind.REFUSED else None
        except FedtuneError:
            return frame  # the attempt looks at it more closely, and names its sender
        if refused is not None:
            self._fail("secagg", name, refused.code, refused.reason)
        return frame

    def _fail(self, stage: Stage, name: str, code: str, reason: str) -> None:
        self.sites.fail(stage, self.request.round, name, code, reason)
