"""``fedtune client audit``: is the site's log as it was written, and what does it say?"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fedtune.commands.reporting import print_json, say
from fedtune.errors import MachineError
from fedtune.secagg.fields import printable
from fedtune.secagg.identity import Identity
from fedtune.site.audit import Verification, verify_audit
from fedtune.site.audit_problems import unusable

__all__ = ["AUDIT_KEY", "AUDIT_LOG", "run_audit"]

AUDIT_KEY: Final = "audit.key"
AUDIT_LOG: Final = "audit.jsonl"

_LONGEST_DETAIL: Final = 300


def run_audit(arguments: argparse.Namespace) -> int:
    """Check or show the audit log of a site's folder; neither writes to it.

    Returns:
        0; of ``verify`` 9 when the log is not intact.

    Raises:
        SecureAggregationError: FT928, ``verify`` cannot use the audit key.
        MachineError: FT830, ``show`` cannot read the log.
    """
    commands = {"verify": _verify, "show": _show}
    return commands[arguments.audit_command](arguments)


def _verify(arguments: argparse.Namespace) -> int:
    folder = Path(arguments.folder)
    key = Identity.load(folder / AUDIT_KEY).public
    finding = verify_audit(folder / AUDIT_LOG, key, expected_head=arguments.head)
    first = _first_time(finding)
    if arguments.json:
        print_json(_as_json(finding, first))
    else:
        _say_finding(finding, first)
    if finding.problem is None:
        return 0
    say(str(MachineError(finding.problem)))
    return MachineError.exit_code


def _first_time(finding: Verification) -> str | None:
    """When the first line was written; it is one that was found to be good."""
    if not finding.lines:
        return None
    with finding.path.open("rb") as file:
        return str(json.loads(file.readline())["time"])


def _as_json(finding: Verification, first: str | None) -> dict[str, Any]:
    return {
        "log": str(finding.path),
        "intact": finding.intact,
        "lines": finding.lines,
        "head": finding.head.hex(),
        "first_time": first,
        "last_time": finding.time,
        "expected_line": finding.expected_line,
        "bad_line": finding.bad_line,
        "problem": None if finding.problem is None else dataclasses.asdict(finding.problem),
    }


def _say_finding(finding: Verification, first: str | None) -> None:
    state = "intact" if finding.intact else f"line {finding.bad_line} is wrong or missing"
    say(f"{finding.path}: {state}")
    say(f"  good lines  {finding.lines}")
    say(f"  head        {finding.head.hex()}")
    if first is not None:
        say(f"  written     {first} to {finding.time}")
    if finding.expected_line is not None:
        say(f"  your head   is that of line {finding.expected_line}")
    elif finding.intact:
        say("A cut at the end does not show by this alone: give a head from a syslog with --head.")


def _show(arguments: argparse.Namespace) -> int:
    path = Path(arguments.folder) / AUDIT_LOG
    try:
        with path.open("rb") as file:
            kept = deque(enumerate(file, start=1), maxlen=arguments.last)
    except OSError as error:
        raise MachineError(unusable(path, error)) from error
    for number, line in kept:
        say(_row(number, line))
    say(f"{len(kept)} lines of {path}, not checked: fedtune client audit verify does that")
    return 0


def _row(number: int, line: bytes) -> str:
    start = f"{number:>7}  "
    try:
        fields = json.loads(line)
        event, details = fields["event"], fields["details"]
        said = _SAID.get(event, _anything)(details)
        row = f"{str(fields['time'])[:19]}Z  {event:<12}  {_about(details):<20}  {said}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{start}no line of an audit log"
    return start + printable(row, longest=_LONGEST_DETAIL).rstrip()


def _about(details: Mapping[str, Any]) -> str:
    if "run" not in details:
        return ""
    return str(details["run"]) + ("" if details["round"] is None else f" round {details['round']}")


def _left(details: Mapping[str, Any]) -> str:
    parts = [f"{details['message']}: {details['bytes']:,} bytes"]
    if details["tensors"]:
        parts.append(f"{len(details['tensors'])} tensors in clear")
    if details["sealed"] is not None:
        parts.append("sealed")
    if details["metrics"]:
        parts.append(f"metrics {', '.join(details['metrics'])}")
    return ", ".join(parts)


def _operator(details: Mapping[str, Any]) -> str:
    reason = f": {details['reason']}" if details["reason"] else ""
    return f"{details['action']} {details['subject']}, by {details['operator']}{reason}"


def _anything(details: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in details.items())


_SAID: Final[dict[str, Callable[[Mapping[str, Any]], str]]] = {
    "started": lambda details: f"fedtune {details['version']}, policy {details['policy'][:12]}",
    "stopped": lambda details: str(details["reason"]),
    "asked": lambda details: f"{details['message']}, bundle {details['bundle'][:12]}",
    "left": _left,
    "refused": lambda details: " ".join((details["message"], details["code"], *details["reasons"])),
    "operator": _operator,
    "tail_dropped": lambda details: f"{details['bytes']} bytes that a crash had left",
}
