"""What of a run its people are told: that a round lacks its quorum or gave nothing, and how the run ended."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from fedtune.coordinator.notify import Notice
from fedtune.coordinator.notify_settings import Kind
from fedtune.coordinator.status import RunStatus
from fedtune.errors import RunError
from fedtune.observability.event_tail import EventTail
from fedtune.observability.events import Event, GateJudged, QuorumMissed, SecureSum

__all__ = ["RunNotices"]


class RunNotices:
    """Follows one run's log.

    Args:
        events: The log; it may not be there yet. What stands in it already was told of before.
        federation: Its name.
        run: The run's name.
        give: Takes a notice; returns at once.
    """

    def __init__(self, events: Path, *, federation: str, run: str, give: Callable[[Notice], None]) -> None:
        self._federation, self._run, self._give = federation, run, give
        self._tail = EventTail.at_end(events, [self._observe])

    def look(self) -> None:
        """Tell of what is new; a log that cannot be read is told of by what reads it for good."""
        try:
            self._tail.read()
        except RunError:
            return

    def ended(self, status: RunStatus) -> None:
        """Tell how the run ended; one that the coordinator stopped is no news."""
        self.look()
        if status.state == "completed":
            self._tell("finished", f"run {self._run} is complete")
        elif status.state != "stopped":
            self._tell("failed", f"run {self._run} {status.state.replace('_', ' ')}: {status.reason}")

    def _observe(self, event: Event) -> None:
        if isinstance(event, QuorumMissed):
            what = f"attempt {event.attempt} of {event.attempts} lacks its quorum: {event.reason}"
            self._tell_of_round("quorum_lost", event, event.round, what)
        elif isinstance(event, GateJudged) and not event.passed:
            self._tell_of_round("round_lost", event, event.round, f"the gate took it back: {event.reason}")
        elif isinstance(event, SecureSum) and not event.opened:
            self._tell_of_round("round_lost", event, event.round, f"it is burnt: {event.reason}")

    def _tell_of_round(self, kind: Kind, event: Event, round_number: int, what: str) -> None:
        self._give(
            Notice(
                kind=kind,
                federation=self._federation,
                run=self._run,
                round=round_number,
                what=what,
                when=datetime.fromtimestamp(event.time, tz=UTC),
            )
        )

    def _tell(self, kind: Kind, what: str) -> None:
        self._give(
            Notice(
                kind=kind,
                federation=self._federation,
                run=self._run,
                what=what,
                when=datetime.now(UTC),
            )
        )
