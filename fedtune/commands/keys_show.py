"""``fedtune keys show``: what files of keys are, until when they hold, and what is wrong with them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.errors import FederationError
from fedtune.keys.certificates import utc_now
from fedtune.keys.inspection import Inspected, inspect
from fedtune.secagg.fields import printable

__all__ = ["run_show"]


def run_show(arguments: argparse.Namespace) -> int:
    """Show every file that is named, and every file of a folder.

    Returns:
        0, or 7 when something is wrong.
    """
    now = utc_now()
    files = [each for path in arguments.paths for each in inspect(Path(path), now)]
    problems = [problem for each in files for problem in each.problems]
    if arguments.json:
        print_json({"ok": not problems, "files": [each.as_json() for each in files]})
    for line in (line for each in files for line in _lines(each)):
        if not arguments.json:
            say(line)
    if problems:
        say(str(FederationError(problems)))
        return FederationError.exit_code
    return 0


def _lines(file: Inspected) -> Iterator[str]:
    content = file.content
    if content is None:
        return
    yield f"{file.path}: {content.kind}{', ' + printable(content.name) if content.name else ''}"
    if content.fingerprint is not None:
        yield f"  fingerprint  {content.fingerprint}"
    if content.ends is not None and file.days_left is not None:
        left = f"{file.days_left} days left" if file.days_left >= 0 else "it has ended"
        yield f"  ends         {content.ends:%Y-%m-%d}, {left}"
    for key, value in content.details.items():
        if value not in (None, "", []):
            yield f"  {key.replace('_', ' '):<12} {printable(_said(value))}"
    for warning in content.warnings:
        yield f"  warning      {warning}: fedtune keys server --renew for a server, a new authority for that"


def _said(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
