"""The FT63x codes of a deployment's key material: one piece of advice for each, and all problems at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from fedtune.errors import FederationError, FedtuneError, Problem

__all__ = ["FIXES", "Gathered", "problem", "refusal"]

FIXES: Final[dict[str, str]] = {
    "FT630": "let its owner alone read it (chmod 600), or restore it from a backup",
    "FT631": "make a certificate that fits: fedtune keys server, with --renew for one that ends",
    "FT632": "let the site send its request again, as an attachment that nothing reformats",
    "FT633": "use nothing of it; ask the coordinator for a bundle that answers this site's request",
    "FT634": "name another folder or name, or move the file away if nobody needs it",
    "FT635": "give a name, an address or a number that fits",
    "FT636": "name a file that a `fedtune keys` command wrote, or the folder that holds it",
    "FT637": "name a site that is enrolled; `fedtune keys show` on the coordinator's folder lists them",
}


def problem(code: str, what: str, *, where: str, fix: str | None = None) -> Problem:
    """One problem of this package, with the advice that belongs to its code unless a better one is given."""
    return Problem(code=code, what=what, where=where, fix=fix or FIXES[code])


def refusal(code: str, what: str, *, where: str, fix: str | None = None) -> FederationError:
    """The error to raise when a check fails; nothing was written when it is raised."""
    return FederationError(problem(code, what, where=where, fix=fix))


class Gathered:
    """All problems of a command's inputs, so that they are reported together."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    @contextmanager
    def part(self) -> Iterator[None]:
        """Look at one part of the input; what is wrong with it is kept, and the next part is looked at."""
        try:
            yield
        except FedtuneError as error:
            self.problems.extend(error.problems)

    def add(self, code: str, flaws: Iterable[str], *, where: str, fix: str | None = None) -> None:
        """Keep each flaw as a problem of this code."""
        self.problems.extend(problem(code, flaw, where=where, fix=fix) for flaw in flaws)

    def refuse(self) -> None:
        """Stop if anything was wrong.

        Raises:
            FederationError: Every problem that was kept.
        """
        if self.problems:
            raise FederationError(self.problems)
