"""What a check of this machine finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Check", "Finding", "Status", "failed", "ok", "warning"]

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one check.

    Attributes:
        status: ``failed`` when fedtune cannot work as it is, ``warning`` when some of it cannot.
        text: What was found, with its numbers.
        fix: What to do; None when all is well.
        code: Stable code of a failure, a page under docs/reference/errors/.
    """

    status: Status
    text: str
    fix: str | None = None
    code: str | None = None


@dataclass(frozen=True, kw_only=True)
class Check:
    """A finding with the name of what was checked."""

    name: str
    status: Status
    finding: str
    fix: str | None
    code: str | None


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(status="ok", text=text)


def warning(text: str, *, fix: str) -> Finding:
    """Something is missing that not everyone needs."""
    return Finding(status="warning", text=text, fix=fix)


def failed(code: str, text: str, *, fix: str) -> Finding:
    """Fedtune cannot work as it is."""
    return Finding(status="failed", text=text, fix=fix, code=code)
