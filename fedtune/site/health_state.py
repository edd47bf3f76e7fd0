"""What a site's daemon tells of itself to those who watch it: counts, codes and times, no word of data."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias, get_args

__all__ = ["KINDS", "OUTCOMES", "Failed", "Outcome", "SiteState", "Snapshot", "Status"]

Outcome: TypeAlias = Literal["answered", "refused", "failed"]
Status: TypeAlias = Literal["ok", "degraded", "stopped"]

KINDS: Final = ("hello", "train", "evaluate", "secagg", "preflight", "other")
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

_TYPES: Final = {
    "query.hello": "hello",
    "train": "train",
    "evaluate": "evaluate",
    "query.secagg": "secagg",
    "query.preflight": "preflight",
}
_OTHER: Final = "other"
_REASON: Final = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_MOST_REASONS: Final = 64
_LONGEST_RUN: Final = 200


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The last failure.

    Attributes:
        code: Such as ``FT610``.
        time: When, in seconds since 1970.
    """

    code: str
    time: float


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The daemon at one moment. Times are in seconds since 1970, and None for never.

    Attributes:
        version: Of fedtune.
        site: Its name.
        federation: The federation's.
        connected: Whether the SuperNode reaches the coordinator.
        paused: Whether the operator paused it.
        stopped: Whether it is going down.
        model_loaded: Whether the base model is in memory.
        busy: Whether a message is being handled.
        run: That of the last message that named one.
        round: Likewise.
        last_round_end: When training last ended.
        last_success: When a message was last answered.
        last_error: The last failure.
        messages: How many, by kind and outcome.
        refused: How many refusals gave a reason, by reason.
        bytes_received: Of all messages.
        bytes_sent: Of all answers.
        rounds_trained: How many.
        training_seconds: In all.
    """

    version: str
    site: str
    federation: str
    connected: bool = False
    paused: bool = False
    stopped: bool = False
    model_loaded: bool = False
    busy: bool = False
    run: str | None = None
    round: int | None = None
    last_round_end: float | None = None
    last_success: float | None = None
    last_error: Failed | None = None
    messages: Mapping[tuple[str, str], int]
    refused: Mapping[str, int]
    bytes_received: int = 0
    bytes_sent: int = 0
    rounds_trained: int = 0
    training_seconds: float = 0.0

    @property
    def status(self) -> Status:
        """``degraded`` while the coordinator is out of reach, or after a failure until the next success.

        A site that is paused is ``ok``: its operator wanted it so.
        """
        if self.stopped:
            return "stopped"
        failing = self.last_error is not None and self.last_error.time > (self.last_success or 0.0)
        return "degraded" if failing or not self.connected else "ok"


class SiteState:
    """Kept up to date by the daemon, from any of its threads, and read by whoever watches.

    Guarantee: what came from outside can make it neither large nor many-sided. A message type or a reason
    that is not known counts as ``other``, and of a run's name 200 characters are kept.

    Args:
        version: As in `Snapshot`.
        site: Likewise.
        federation: Likewise.
        clock: Seconds since 1970.
    """

    def __init__(
        self, *, version: str, site: str, federation: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._messages: Counter[tuple[str, str]] = Counter()
        self._messages.update({(kind, outcome): 0 for kind in KINDS for outcome in OUTCOMES})
        self._refused: Counter[str] = Counter()
        self._now = Snapshot(version=version, site=site, federation=federation, messages={}, refused={})

    def snapshot(self) -> Snapshot:
        """Everything, at one moment."""
        with self._lock:
            return replace(self._now, messages=dict(self._messages), refused=dict(self._refused))

    def set_connected(self, connected: bool) -> None:
        """The SuperNode reaches the coordinator, or does not."""
        with self._lock:
            self._now = replace(self._now, connected=connected)

    def set_paused(self, paused: bool) -> None:
        """The operator paused the site, or let it go on."""
        with self._lock:
            self._now = replace(self._now, paused=paused)

    def set_model_loaded(self, loaded: bool) -> None:
        """The base model is in memory, or no longer."""
        with self._lock:
            self._now = replace(self._now, model_loaded=loaded)

    def stop(self) -> None:
        """The daemon is going down."""
        with self._lock:
            self._now = replace(self._now, stopped=True)

    @contextmanager
    def working(self, run: str, round: int | None) -> Iterator[None]:
        """A message of a run is being handled inside the block.

        Args:
            run: Its name.
            round: From 1, or 0 before the first; None leaves the round of this run as it was.
        """
        run = run[:_LONGEST_RUN]
        with self._lock:
            known = self._now.round if self._now.run == run else None
            self._now = replace(self._now, busy=True, run=run, round=known if round is None else round)
        try:
            yield
        finally:
            with self._lock:
                self._now = replace(self._now, busy=False)

    def trained(self, *, seconds: float) -> None:
        """A round's local training ended, after so many seconds."""
        with self._lock:
            self._now = replace(
                self._now,
                last_round_end=self._clock(),
                rounds_trained=self._now.rounds_trained + 1,
                training_seconds=self._now.training_seconds + max(0.0, seconds),
            )

    def answered(self, message_type: str, *, received: int, sent: int) -> None:
        """A message was answered as it asked.

        Args:
            message_type: Flower's, such as ``query.hello``.
            received: Bytes of the message.
            sent: Bytes of the answer.
        """
        with self._lock:
            self._count(message_type, "answered", received, sent)
            self._now = replace(self._now, last_success=self._clock())

    def refused(self, message_type: str, *, received: int, sent: int, reasons: Iterable[str]) -> None:
        """A message was refused, which is no failure.

        Args:
            message_type: As in `answered`.
            received: Likewise.
            sent: Likewise.
            reasons: Codes, such as ``FT640`` or a policy's reasons.
        """
        with self._lock:
            self._count(message_type, "refused", received, sent)
            for reason in reasons:
                known = reason in self._refused or len(self._refused) < _MOST_REASONS
                self._refused[reason if known and _REASON.fullmatch(reason) else _OTHER] += 1

    def failed(self, message_type: str, *, received: int, sent: int, code: str) -> None:
        """A message could not be answered.

        Args:
            message_type: As in `answered`.
            received: Likewise.
            sent: Likewise.
            code: Of the error.
        """
        with self._lock:
            self._count(message_type, "failed", received, sent)
            self._fail(code)

    def trouble(self, code: str) -> None:
        """Something failed that belongs to no message, such as the start of the SuperNode."""
        with self._lock:
            self._fail(code)

    def _fail(self, code: str) -> None:
        known = code if _REASON.fullmatch(code) else _OTHER
        self._now = replace(self._now, last_error=Failed(code=known, time=self._clock()))

    def _count(self, message_type: str, outcome: Outcome, received: int, sent: int) -> None:
        self._messages[_TYPES.get(message_type, _OTHER), outcome] += 1
        self._now = replace(
            self._now,
            bytes_received=self._now.bytes_received + received,
            bytes_sent=self._now.bytes_sent + sent,
        )
