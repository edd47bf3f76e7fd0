"""``fedtune keys spent``: the journal of opened updates, and a release by the site's operator."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.errors import ConfigError, Problem, SecureAggregationError
from fedtune.secagg.fields import integer, printable, string
from fedtune.secagg.problems import refusal
from fedtune.secagg.spent import SpentJournal, UpdateOrigin

__all__ = ["run_spent"]

_Entry = dict[str, Any]
_SAID: dict[Any, dict[str, Callable[[Any], str | int]]] = {
    "spent": {"run": string, "round": integer, "attempt": integer},
    "released": {"operator": string, "reason": string},
}


def run_spent(arguments: argparse.Namespace) -> int:
    """List the journal, or release one entry of it.

    Returns:
        0.
    """
    _check_options(arguments)
    path = Path(arguments.journal)
    if not os.path.isfile(path):
        raise refusal("FT919", "there is no journal here", where=str(path))
    journal = SpentJournal(path)
    if arguments.release is not None:
        _release(journal, path, arguments)
    entries = _entries(journal, path)
    if arguments.json:
        print_json({"journal": str(path), "entries": entries})
        return 0
    say(f"{path}: {len(entries)} entries")
    for entry in entries:
        say(_line(entry))
    return 0


def _check_options(arguments: argparse.Namespace) -> None:
    given = {name: getattr(arguments, name) is not None for name in ("release", "operator", "reason")}
    if len(set(given.values())) > 1:
        missing = ", ".join(f"--{name}" for name, there in given.items() if not there)
        raise ConfigError(
            Problem(
                code="FT109",
                what=f"a release names an entry, an operator and a reason; not given: {missing}",
                where="fedtune keys spent",
                fix="give --release N --operator NAME --reason TEXT, or none of them to list the journal",
            )
        )


def _release(journal: SpentJournal, path: Path, arguments: argparse.Namespace) -> None:
    entries = _entries(journal, path)
    number: int = arguments.release
    where = f"{path}, entry {number}"
    if number > len(entries):
        raise refusal("FT912", f"there is no entry {number}, the last is {len(entries)}", where=where)
    entry = entries[number - 1]
    if entry["event"] != "spent":
        raise refusal("FT912", f"entry {number} is a release itself", where=where)
    if entry["released_by"] is not None:
        raise refusal("FT912", f"entry {number} is released by entry {entry['released_by']}", where=where)
    journal.release(UpdateOrigin.from_json(entry), operator=arguments.operator, reason=arguments.reason)


def _entries(journal: SpentJournal, path: Path) -> list[_Entry]:
    """All lines with their numbers, and for each opened update the number of its release or None."""
    entries: list[_Entry] = []
    problems: list[Problem] = []
    in_force: dict[UpdateOrigin, _Entry] = {}
    for number, line in enumerate(journal.entries(), start=1):
        try:
            entry, origin = _entry(number, line), UpdateOrigin.from_json(line)
        except (ValueError, TypeError, OverflowError, OSError) as error:
            what = f"line {number} is damaged: {error}"
            problems.extend(refusal("FT919", what, where=f"{path}, line {number}").problems)
            continue
        entries.append(entry)
        if entry["event"] == "spent":
            in_force[origin] = entry
        elif origin in in_force:
            in_force.pop(origin)["released_by"] = number
    if problems:
        raise SecureAggregationError(problems)
    return entries


def _entry(number: int, line: _Entry) -> _Entry:
    event = line.get("event")
    if event not in _SAID:
        raise ValueError(f"event is {event!r:.80}")
    at: Any = line.get("time")
    return {
        "entry": number,
        "event": event,
        "time": datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds"),
        **{key: check(line.get(key)) for key, check in _SAID[event].items()},
        **({"released_by": None} if event == "spent" else {}),
        **UpdateOrigin.from_json(line).as_json(),
    }


def _line(entry: _Entry) -> str:
    start = f"{entry['entry']:>6}  {entry['time']}  "
    if entry["event"] == "released":
        return start + printable(f"release by {entry['operator']}: {entry['reason']}", longest=None)
    state = f"released by entry {entry['released_by']}" if entry["released_by"] else "opened"
    what = printable(f"run {entry['run']}, round {entry['round']}, attempt {entry['attempt']}")
    return f"{start}{state}: {what}"
