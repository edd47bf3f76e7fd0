"""The event log: the one source of truth from which everything shown about a run is drawn.

A run's ``rounds.jsonl`` holds one JSON object a line, ``{"v": 1, "event": NAME, "time": UNIX, ...fields}``.
Everything about events is imported from here; their types are written down in event_types.py.

Guarantees:

* ``parse_event(event_line(e)) == e`` for every stored event, and the line is standard JSON (no ``NaN``).
* Nothing is guessed: an event name, a field or a version that this fedtune does not know is an error.
* When ``EventLog.append`` returns, the line is on the disk. A crash at any instant loses at most the line
  being written; a write that fails (a full disk) takes its half line back.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fedtune.errors import Problem, RunError
from fedtune.observability.disk import disk_errors, sync_directory, write_all
from fedtune.observability.event_types import (
    EVENT_TYPES,
    BackdoorMeasured,
    BaselineFinished,
    ClientEvaluated,
    ClientFailed,
    ClientFineTuned,
    ClientTrained,
    Clustered,
    DryRound,
    Event,
    GateJudged,
    Generated,
    GroupDropped,
    ModelLoaded,
    Preflight,
    QuorumMissed,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    SecurePromise,
    SecureSum,
    Sites,
    SiteSize,
    Split,
    StepProgress,
)
from fedtune.observability.preflight_events import DrySite, SiteCheckResult, SiteReadiness

__all__ = [
    "EVENT_TYPES",
    "EVENT_VERSION",
    "BackdoorMeasured",
    "BaselineFinished",
    "ClientEvaluated",
    "ClientFailed",
    "ClientFineTuned",
    "ClientTrained",
    "Clustered",
    "DryRound",
    "DrySite",
    "Event",
    "EventLog",
    "GateJudged",
    "Generated",
    "GroupDropped",
    "ModelLoaded",
    "Observer",
    "Preflight",
    "QuorumMissed",
    "RoundAggregated",
    "RoundFinished",
    "RoundStarted",
    "RunFinished",
    "RunStarted",
    "SecurePromise",
    "SecureSum",
    "SiteCheckResult",
    "SiteReadiness",
    "SiteSize",
    "Sites",
    "Split",
    "StepProgress",
    "effective_events",
    "event_line",
    "parse_event",
    "read_events",
]

EVENT_VERSION = 1
"""Version of the line format; it grows when a field changes its meaning or a new one appears."""

Observer = Callable[[Event], None]
"""Told of every event, in order, after it is on the disk."""

_ADAPTERS: dict[type[Event], TypeAdapter[Any]] = {kind: TypeAdapter(kind) for kind in EVENT_TYPES.values()}


def event_line(event: Event) -> str:
    """Return the event as one line of standard JSON, newline included.

    Raises:
        ValueError: the event is not a stored one, or a free-form field holds a number that is not finite.
    """
    if type(event) not in _ADAPTERS:
        raise ValueError(f"{type(event).__name__} is not an event that is written to disk")
    fields = _ADAPTERS[type(event)].dump_python(event)
    record = {"v": EVENT_VERSION, "event": event.name_on_disk, "time": fields.pop("time"), **fields}
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not standard JSON")


def parse_event(line: str | bytes, *, where: str = "event") -> Event:
    """Read one line back.

    Args:
        line: One JSON object.
        where: Named in errors, such as ``runs/demo/rounds.jsonl, line 7``.

    Raises:
        RunError: FT703 for damage, FT704 for a version, event or field that this fedtune does not know.
    """
    try:
        record = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RunError(_damaged(f"this is not a line of JSON: {error}", where)) from error
    if not isinstance(record, dict) or not isinstance(record.get("event"), str) or "v" not in record:
        raise RunError(_damaged('a line must be an object with "v" and "event"', where))
    version, name = record.pop("v"), record.pop("event")
    if version is True or version != EVENT_VERSION:
        raise RunError(_newer(f"the line has version {version!r}, known is {EVENT_VERSION}", where))
    kind = EVENT_TYPES.get(name)
    if kind is None:
        raise RunError(_newer(f"there is no event {name!r}", where))
    if "time" not in record:  # on construction it has a default; on disk it is never absent
        raise RunError(_damaged(f"event {name!r}: time: Field required", where))
    try:
        # JSON mode: arrays may become tuples, everything else is as strict as on construction.
        event: Event = _ADAPTERS[kind].validate_json(json.dumps(record))
    except ValidationError as error:
        raise RunError([_field_problem(name, dict(found), where) for found in error.errors()]) from error
    return event


def _field_problem(name: str, found: Mapping[str, Any], where: str) -> Problem:
    field = ".".join(str(part) for part in found["loc"])
    if found["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return _newer(f"event {name!r} has no field {field!r}", where)
    return _damaged(f"event {name!r}: {field}: {found['msg']}, got {found['input']!r:.200}", where)


def _damaged(what: str, where: str) -> Problem:
    return Problem(
        code="FT703",
        what=f"the run's event log is damaged: {what}",
        where=where,
        fix="restore the file from a backup, or start the run anew under another name=; the checkpoints "
        "and the adapter beside it are not touched",
    )


def _newer(what: str, where: str) -> Problem:
    return Problem(
        code="FT704",
        what=f"the event log holds something this fedtune does not know: {what}",
        where=where,
        fix="read it with the version of fedtune that wrote it (run_started.version) or a newer one",
    )


def effective_events(events: Iterable[Event]) -> list[Event]:
    """Apply the resume rule: drop what a later session voided.

    A ``run_started`` with ``resumed_after = N`` voids, among the events before it, those of rounds after N,
    every ``run_finished``, ``generated`` and ``backdoor_measured`` (they speak of an end that was not the
    last one). What stays: earlier ``run_started``, ``model_loaded`` and ``sites``, rounds up to N, and
    baselines, which depend on no round. A later ``run_started`` with ``resumed_after = None`` starts over and
    voids all.

    An evaluation or baseline that was repeated after the resume stands once, as the last one recorded.
    """
    kept: list[Event] = []
    for event in events:
        if isinstance(event, RunStarted):
            keep_rounds = event.resumed_after
            kept = [] if keep_rounds is None else [old for old in kept if _stays(old, keep_rounds)]
        kept.append(event)
    last = {_identity(event): index for index, event in enumerate(kept)}
    return [event for index, event in enumerate(kept) if last[_identity(event)] == index]


def _stays(event: Event, keep_rounds: int) -> bool:
    if isinstance(event, RunFinished | Generated | BackdoorMeasured):
        return False
    return getattr(event, "round", 0) <= keep_rounds


def _identity(event: Event) -> tuple[object, ...]:
    """Two events with the same identity tell the same thing; the later one stands."""
    key: tuple[object, ...]
    match event:
        case ClientTrained():
            key = (event.round, event.client, event.training)
        case ClientEvaluated() | ClientFineTuned():
            key = (event.round, event.client)
        case ClientFailed():
            key = (event.round, event.client, event.stage)
        case RoundStarted() | SecureSum() | RoundAggregated() | Clustered() | GateJudged() | RoundFinished():
            key = (event.round,)
        case GroupDropped():
            key = (event.round, event.group)
        case BaselineFinished():
            key = (event.kind, event.site)
        case _:
            key = (id(event),)
    return (event.name_on_disk, *key)


def read_events(path: Path) -> list[Event]:
    """Read a whole log; a torn last line, which a crash leaves, is left out.

    Raises:
        RunError: FT703 for damage elsewhere and FT704 for what this fedtune does not know, each with its
            line number, all problems at once; FT706 where there is no log; FT707 if it cannot be read.
    """
    return _read(path)[0]


def _read(path: Path) -> tuple[list[Event], int]:
    """Return the events and the number of bytes that hold them; what follows is a torn line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise RunError(
            Problem(
                code="FT706",
                what="there is no run here: its event log is missing",
                where=str(path),
                fix="give the folder of a run, such as runs/demo; `fedtune simulate` makes one",
            )
        ) from error
    except OSError as error:
        raise RunError(
            Problem(
                code="FT707",
                what=f"the event log cannot be read: {error.strerror}",
                where=str(path),
                fix="check the permissions of the file and of the folders above it",
            )
        ) from error
    # A line counts once its newline is there: whatever follows the last newline was cut off in writing.
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)
    events: list[Event] = []
    problems: list[Problem] = []
    kept = 0
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not _is_json(line):
            break  # a power cut may keep a line's newline and lose its middle
        kept += len(line)
        try:
            events.append(parse_event(line, where=f"{path}, line {number}"))
        except RunError as error:
            problems.extend(error.problems)
    if problems:
        raise RunError(problems)
    return events, kept


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class EventLog:
    """The append-only log of one run, with observers.

    Only one process may hold a log open for appending; RunDirectory's lock sees to that.

    Args:
        path: The file; made if absent. A torn last line is cut away.

    Raises:
        RunError: FT703 or FT704 if what is there cannot be continued, FT705 or FT707 if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._observers: list[Observer] = []
        # Ray and progress callbacks may report from threads; lines and what observers see stay in one order.
        self._order = threading.RLock()
        with disk_errors(path, kept="nothing was changed"):
            is_new = not path.exists()
            kept = 0 if is_new else _read(path)[1]
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if os.fstat(self._file).st_size > kept:
                os.ftruncate(self._file, kept)
                os.fsync(self._file)
            if is_new:
                sync_directory(path.parent)

    def observe(self, observer: Observer) -> None:
        """Call ``observer`` with every event from now on."""
        with self._order:
            self._observers.append(observer)

    def append(self, event: Event) -> None:
        """Write one event to the disk, then tell the observers.

        Raises:
            RunError: FT705 or FT707; the log then ends with the event before this one.
            ValueError: this event is not a stored one; see ``emit``.
        """
        line = event_line(event).encode()
        with self._order:
            size = os.fstat(self._file).st_size
            with disk_errors(self.path, kept="every event before this one and every complete checkpoint"):
                try:
                    write_all(self._file, line)
                    os.fsync(self._file)
                except BaseException:
                    os.ftruncate(self._file, size)
                    raise
            self._tell(event)

    def emit(self, event: StepProgress) -> None:
        """Tell the observers of progress that is not kept."""
        with self._order:
            self._tell(event)

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            observer(event)

    def read(self) -> list[Event]:
        """Return the events on the disk."""
        return read_events(self.path)

    def close(self) -> None:
        """Close the file; further appends fail. Closing twice is fine."""
        with self._order:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
