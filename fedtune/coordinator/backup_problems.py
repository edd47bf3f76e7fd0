"""What can be wrong with a backup, each with its code and what to do."""

from __future__ import annotations

from typing import Final

from fedtune.errors import FederationError, Problem

__all__ = ["problem", "refusal"]

_FIXES: Final[dict[str, str]] = {
    "FT670": "name the coordinator's folder, mend what is named here, and repeat the command",
    "FT671": "repeat the command and type carefully; nobody can open a backup without its passphrase",
    "FT672": "use another copy of this backup, or an earlier one; nothing was restored",
    "FT673": "name another one; nothing was written",
}


def problem(code: str, what: str, *, where: str, fix: str | None = None) -> Problem:
    """One problem, with the advice that belongs to its code unless a better one is given."""
    return Problem(code=code, what=what, where=where, fix=fix or _FIXES[code])


def refusal(code: str, what: str, *, where: str, fix: str | None = None) -> FederationError:
    """The error to raise when nothing was written or restored."""
    return FederationError(problem(code, what, where=where, fix=fix))
