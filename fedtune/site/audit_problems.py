"""What can be wrong with an audit log, each with its code and what to do."""

from __future__ import annotations

from pathlib import Path

from fedtune.errors import Problem
from fedtune.site.audit_chain import BrokenLineError

__all__ = ["cut", "damaged", "incomplete", "unusable"]


def unusable(path: Path, error: OSError) -> Problem:
    """The file cannot be opened, read or written."""
    return Problem(
        code="FT830",
        what=f"the audit log cannot be read or written: {error.strerror}",
        where=str(path),
        fix="let the site's user read and write the file, and free its disk; without it nothing is answered",
    )


def damaged(path: Path, line: int, error: BrokenLineError) -> Problem:
    """A line is not the one that was written."""
    return Problem(
        code="FT831",
        what=f"line {line} {error}",
        where=f"{path}, line {line}",
        fix="keep the file as it is and find out who changed it; begin a new log under another name",
    )


def cut(path: Path, head: bytes, lines: int) -> Problem:
    """A head that was seen is of no line."""
    return Problem(
        code="FT832",
        what=f"no line has the head {head.hex()[:16]}…: lines were cut off, or the log was written anew",
        where=f"{path}, line {lines + 1}",
        fix="keep the file as it is and compare it with a backup, and its heads with the syslog",
    )


def incomplete(path: Path, line: int) -> Problem:
    """The last line has no newline."""
    return Problem(
        code="FT833",
        what=f"line {line} has no end: a crash left it so, or somebody cut it off",
        where=f"{path}, line {line}",
        fix="start the site, which cuts the line away and notes that; compare the head with the syslog's",
    )
