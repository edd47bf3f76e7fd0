"""How long a run took, over all its sessions, and how much of that its clients were at work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fedtune.observability.events import (
    BackdoorMeasured,
    BaselineFinished,
    ClientEvaluated,
    ClientFineTuned,
    ClientTrained,
    Event,
    Generated,
    ModelLoaded,
    RunFinished,
    RunStarted,
)

__all__ = ["Session", "covered_seconds", "overhead_fraction", "sessions", "work_intervals"]

Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Session:
    """One process's part of a run.

    Attributes:
        started: Unix seconds.
        seconds: From the start of loading to the last evaluation; to the last event of a killed session.
        load_seconds: The part of it that loading took.
    """

    started: float
    seconds: float
    load_seconds: float


def covered_seconds(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of [start, end] intervals; one that ends before it starts is empty."""
    total, reached = 0.0, -math.inf
    for start, end in sorted(intervals):
        if end > max(start, reached):
            total += end - max(start, reached)
            reached = end
    return total


def work_intervals(events: Iterable[Event]) -> list[Interval]:
    """Return the intervals in which a client trained or evaluated."""
    return [
        (event.started, event.finished)
        for event in events
        if isinstance(event, ClientTrained | ClientEvaluated | ClientFineTuned)
    ]


def sessions(recorded: Sequence[Event]) -> list[Session]:
    """Split a log at each ``run_started``; voided events belong to the session that recorded them."""
    starts = [index for index, event in enumerate(recorded) if isinstance(event, RunStarted)]
    ends = [*starts, len(recorded)][1:]
    return [_session(recorded[start:end]) for start, end in zip(starts, ends, strict=True)]


def _session(events: Sequence[Event]) -> Session:
    started = events[0].time
    for event in reversed(events):
        if isinstance(event, RunFinished):
            return Session(started=started, seconds=event.seconds, load_seconds=event.load_seconds)
    # What comes after the federation is not part of its time.
    after = BaselineFinished | Generated | BackdoorMeasured
    times = [event.time for event in events if not isinstance(event, after)]
    loading = math.fsum(event.seconds for event in events if isinstance(event, ModelLoaded))
    return Session(started=started, seconds=max(0.0, max(times) - started), load_seconds=loading)


def overhead_fraction(recorded: Sequence[Event]) -> float | None:
    """Return the share of the time after loading in which no client trained or evaluated.

    Args:
        recorded: All events of a log, voided ones included: their work has cost its time.

    Returns:
        Between 0 and 1; None if no time has passed after loading.
    """
    spans = sessions(recorded)
    after_loading = math.fsum(span.seconds - span.load_seconds for span in spans)
    if after_loading <= 0:
        return None
    work = work_intervals(recorded)
    # Work after a session's end (a round that was cut short is not part of its seconds) covers nothing of it.
    covered = math.fsum(
        covered_seconds(
            (max(start, span.started), min(end, span.started + span.seconds)) for start, end in work
        )
        for span in spans
    )
    return min(1.0, max(0.0, 1.0 - covered / after_loading))
