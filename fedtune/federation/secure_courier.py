"""Carries a secure round's requests to the sites and their answers back, over Flower."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message, RecordDict

from fedtune.config.schema import Config
from fedtune.errors import FedtuneError
from fedtune.federation.dialogue import Dialogue, Stage, flower_failure
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
from fedtune.observability.events import SecureSum
from fedtune.secagg.messages import Kind, Refusal, Signed, open_frame
from fedtune.secagg.roster import Roster
from fedtune.updates.codec import wire_bytes

__all__ = ["Courier", "Trained"]

Trained = Callable[[str, TrainReply, int, int], None]
"""Told of a site that trained: its name and reply, the bytes that it sent and that it received."""


@dataclass(kw_only=True)
class Courier:
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
