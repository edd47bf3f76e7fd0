"""``fedtune doctor``: print every check of this machine, each as soon as it is made."""

from __future__ import annotations

import argparse
import dataclasses

from rich.console import Console
from rich.text import Text

from fedtune.commands.reporting import print_json
from fedtune.errors import MachineError
from fedtune.site.doctor import run_checks
from fedtune.site.findings import Check

__all__ = ["run"]

_MARKS = {"ok": ("ok", "green"), "warning": ("note", "yellow"), "failed": ("FAIL", "bold red")}


def run(arguments: argparse.Namespace) -> int:
    """Make all checks.

    Returns:
        0 when none failed, else the exit code of a :class:`MachineError`.
    """
    console = Console(stderr=True, highlight=False)
    made = []
    for check in run_checks():
        made.append(check)
        if not arguments.json:
            _show(check, console)
    failures = sum(check.status == "failed" for check in made)
    if arguments.json:
        print_json({"ok": not failures, "checks": [dataclasses.asdict(check) for check in made]})
    else:
        notes = sum(check.status == "warning" for check in made)
        console.print(f"\n{len(made)} checks, {failures} failed, {notes} to note")
    return MachineError.exit_code if failures else 0


def _show(check: Check, console: Console) -> None:
    mark, style = _MARKS[check.status]
    console.print(
        Text.assemble((f"{mark:>4}  ", style), (check.name, "bold"), f"  {check.finding}"), soft_wrap=True
    )
    if check.fix:
        code = f"{check.code}: " if check.code else ""
        console.print(Text(f"      {code}{check.fix}"), soft_wrap=True)
