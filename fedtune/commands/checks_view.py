"""How a doctor's checks are printed: for a person each as soon as it is made, for a program all at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from fedtune.commands.reporting import print_json
from fedtune.errors import MachineError
from fedtune.site.findings import Check

__all__ = ["report_checks"]

_MARKS = {"ok": ("ok", "green"), "warning": ("note", "yellow"), "failed": ("FAIL", "bold red")}


def report_checks(make: Callable[[Callable[[str], None]], Iterator[Check]], *, as_json: bool) -> int:
    """Make all checks and print them.

    Args:
        make: Makes the checks; it may tell the function that it is given what it is about to look at.
        as_json: Print one object to stdout.

    Returns:
        0 when none failed, else the exit code of a :class:`MachineError`.
    """
    console = Console(stderr=True, highlight=False)
    made = []
    with console.status("") as status:
        if as_json:
            status.stop()
        for check in make(lambda name: status.update(Text(name))):
            made.append(check)
            if not as_json:
                _show(check, console)
    failures = sum(check.status == "failed" for check in made)
    if as_json:
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
