"""Making one check: whatever happens in it becomes findings, and never an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from fedtune.errors import FedtuneError, Problem
from fedtune.site.findings import Check, Finding, failed, warning

__all__ = ["as_finding", "made", "not_made"]


def made(name: str, check: Callable[[], Finding | Iterable[Finding]]) -> Iterator[Check]:
    """Make a check and name its findings: one for each problem that it raises.

    Args:
        name: What is checked.
        check: Gives one finding or several.
    """
    try:
        found = check()
        findings = [found] if isinstance(found, Finding) else list(found)
    except FedtuneError as error:
        findings = [as_finding(problem) for problem in error.problems]
    except Exception as error:  # the doctor must report what is broken, whatever it raises
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        findings = [
            failed(
                "FT808", f"this check could not be made: {reason:.300}", fix="mend what failed above first"
            )
        ]
    for each in findings:
        yield Check(name=name, status=each.status, finding=each.text, fix=each.fix, code=each.code)


def as_finding(problem: Problem) -> Finding:
    """A problem as a finding, which has one line for what is wrong and where."""
    return failed(problem.code, f"{problem.what} ({problem.where})", fix=problem.fix)


def not_made(because: str) -> Finding:
    """A check whose precondition is not there: that has been reported already, so this is no failure."""
    return warning(f"not checked: {because}", fix="mend what failed above, and run the doctor again")
