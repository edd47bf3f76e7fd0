"""What the site's operator decides: which runs may begin, and whether the site takes part at all.

The operator's commands and the client are processes of their own that meet in files of the site's folder:
each is written whole and synced before a command returns, and read again at every message.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fedtune.errors import MachineError, Problem
from fedtune.observability.disk import disk_errors, write_atomic
from fedtune.site.records import DamagedRecordError, append_record, read_records

__all__ = ["Approvals", "Pending", "Standing", "Subject", "read_standing", "write_standing"]

State: TypeAlias = Literal["open", "paused", "left"]

_MOST_PENDING = 100


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is approved: all four together, so that a change of any is a first sight again.

    Attributes:
        run: Name of the run.
        config: SHA-256 of its configuration, in hex.
        base_model: Hash of the base model, in hex.
        bundle: SHA-256 of the coordinator's bundle, in hex.
    """

    run: str
    config: str
    base_model: str
    bundle: str

    @property
    def id(self) -> str:
        """Short name of the four, for files and for people."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Pending:
    """A run that waits for the operator.

    Attributes:
        subject: What would be approved.
        since: When it was first asked for, ISO 8601 in UTC.
        summary: What it would do, in lines for people.
    """

    subject: Subject
    since: str
    summary: tuple[str, ...]


class Approvals:
    """Runs that were approved, and runs that wait.

    Args:
        path: JSON lines of what was approved; only ever appended to.
        pending: Folder with one file for each run that waits.
    """

    def __init__(self, path: Path, pending: Path) -> None:
        self._path, self._pending = path, pending

    def approved(self, subject: Subject) -> bool:
        """Say whether exactly this was approved.

        Raises:
            MachineError: FT684, the file is damaged.
        """
        return subject in self._approved()

    def approve(self, subject: Subject, *, operator: str) -> None:
        """Approve it, durably; it waits no more.

        Raises:
            RunError: FT705 or FT707, the file cannot be written.
        """
        line = {"time": _now(), "operator": operator, **dataclasses.asdict(subject)}
        append_record(self._path, line, kept="what was approved before", again="approve it again")
        self._place(subject).unlink(missing_ok=True)

    def ask(self, subject: Subject, summary: tuple[str, ...]) -> None:
        """Let a run wait; one that waits already keeps its time.

        Beyond 100, the one that waited longest is forgotten until it is asked for again: a coordinator that
        asks for very many cannot keep the next one from being seen.
        """
        place = self._place(subject)
        if place.exists():
            return
        for oldest in self.waiting()[: 1 - _MOST_PENDING]:
            self._place(oldest.subject).unlink(missing_ok=True)
        body = {"v": 1, "since": _now(), "summary": list(summary), **dataclasses.asdict(subject)}
        kept, again = "what waited before", "the run waits as soon as it is asked for again"
        with disk_errors(place, kept=kept, again=again):
            self._pending.mkdir(parents=True, exist_ok=True)
        write_atomic(place, json.dumps(body).encode(), kept=kept, again=again)

    def waiting(self) -> list[Pending]:
        """Return the runs that wait, longest first.

        Raises:
            MachineError: FT684, a file is damaged.
        """
        found = []
        for place in sorted(self._pending.glob("*.json")):
            try:
                raw = _object(place.read_bytes())
                pending = Pending(
                    subject=_subject(raw), since=str(raw["since"]), summary=tuple(map(str, raw["summary"]))
                )
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError):
                raise MachineError(_damaged(place)) from None
            found.append(pending)
        return sorted(found, key=lambda pending: pending.since)

    def _place(self, subject: Subject) -> Path:
        return self._pending / f"{subject.id}.json"

    def _approved(self) -> set[Subject]:
        try:
            return set(read_records(self._path, _subject))
        except DamagedRecordError as error:
            raise MachineError(_damaged(self._path, error.line)) from None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Whether the site takes part.

    Attributes:
        state: ``open``: as the policy says; ``paused``: not now; ``left``: never again.
        operator: Who said so.
        reason: Why, in the operator's words.
        time: When, ISO 8601 in UTC.
    """

    state: State
    operator: str = ""
    reason: str = ""
    time: str = ""


def read_standing(path: Path) -> Standing:
    """Return what was said last; a site that never said anything takes part.

    Raises:
        MachineError: FT684, the file is damaged: the site takes part in nothing until it is mended.
    """
    try:
        raw = _object(path.read_bytes())
        return Standing(
            state=_state(raw["state"]),
            operator=str(raw["operator"]),
            reason=str(raw["reason"]),
            time=str(raw["time"]),
        )
    except FileNotFoundError:
        return Standing(state="open")
    except (OSError, ValueError, KeyError, TypeError):
        raise MachineError(_damaged(path)) from None


def write_standing(path: Path, state: State, *, operator: str, reason: str) -> None:
    """Say whether the site takes part, durably.

    Raises:
        RunError: FT705 or FT707, the file cannot be written.
    """
    body = {"v": 1, "state": state, "operator": operator, "reason": reason, "time": _now()}
    with disk_errors(path, kept="what was said before", again="say it again"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(body).encode(), kept="what was said before", again="say it again")


def _state(raw: Any) -> State:
    states: dict[Any, State] = {"open": "open", "paused": "paused", "left": "left"}
    return states[raw]


def _object(data: bytes) -> dict[str, Any]:
    raw = json.loads(data)
    if not isinstance(raw, dict) or raw.get("v") != 1:
        raise ValueError("not an object of version 1")
    return raw


def _subject(raw: dict[str, Any]) -> Subject:
    texts = {key: raw[key] for key in ("run", "config", "base_model", "bundle")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("not texts")
    return Subject(**texts)


def _damaged(path: Path, line: int | None = None) -> Problem:
    return Problem(
        code="FT684",
        what="a record of the operator's decisions is damaged",
        where=f"{path}" if line is None else f"{path}, line {line}",
        fix="stop the client, move the file away, start the client, and decide again",
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
