"""What can be wrong with a gate (FT65x) and with backups (FT67x), and one piece of advice for each code."""

from __future__ import annotations

from typing import Final

from fedtune.errors import FederationError, Problem

__all__ = ["FIXES", "problem", "refusal"]

FIXES: Final[dict[str, str]] = {
    "FT650": "stop what listens there, or let the gate listen on an address and port that are free",
    "FT651": "give a value that fits; docs/reference/gate.md lists every setting with its unit",
    "FT652": "read the log above, remove the cause and start the server again",
    "FT653": "move the file away; counting begins anew",
    "FT670": "name the coordinator's folder, mend what is named here, and repeat the command",
    "FT671": "repeat the command and type carefully; nobody can open a backup without its passphrase",
    "FT672": "use another copy of this backup, or an earlier one; nothing was restored",
    "FT673": "name another one; nothing was written",
}


def problem(code: str, what: str, *, where: str, fix: str | None = None) -> Problem:
    """One problem of this package, with the advice that belongs to its code unless a better one is given."""
    return Problem(code=code, what=what, where=where, fix=fix or FIXES[code])


def refusal(code: str, what: str, *, where: str, fix: str | None = None) -> FederationError:
    """The error to raise."""
    return FederationError(problem(code, what, where=where, fix=fix))
