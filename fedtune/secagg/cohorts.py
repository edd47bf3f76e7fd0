"""A client's log of the sums it took part in, and the warning when two of them can be subtracted.

So et al. 2023 (AAAI, "Securing Secure Aggregation: Mitigating Multi-Round Privacy Leakage in Federated
Learning"): a site that is in one round's sum and not in another's, with the rest unchanged, is visible in
the difference. Secure aggregation alone cannot prevent it; fixed groups can.
"""

from __future__ import annotations

from pathlib import Path

from fedtune.errors import Problem
from fedtune.secagg.ledger import Ledger
from fedtune.secagg.problems import problem
from fedtune.secagg.roster import Roster

__all__ = ["CohortLog"]


class CohortLog:
    """A site's own log file: run, round and identities of every sum it confirmed.

    Args:
        path: JSON lines without secrets.
    """

    def __init__(self, path: Path) -> None:
        self._ledger = Ledger(path)

    def record(
        self, cohort: frozenset[bytes], *, run: str, round_number: int, roster: Roster
    ) -> tuple[Problem, ...]:
        """Write down a cohort and compare it with the earlier ones.

        Returns:
            FT927 for each earlier cohort of other members that differs by one site, naming that site.

        Raises:
            SecureAggregationError: FT919, the log is damaged or cannot be written.
        """
        warnings: dict[str, Problem] = {}

        def compare(lines: list[dict[str, object]]) -> None:
            for line in lines:
                earlier = frozenset(bytes.fromhex(str(item)) for item in _members(line))
                difference = cohort ^ earlier
                if len(difference) == 1:
                    site = roster.site(next(iter(difference)))
                    warnings[site] = problem(
                        "FT927",
                        f"the sums of run {run}, round {round_number} and of run {line.get('run')}, round "
                        f"{line.get('round')} differ by {site} alone: subtracting shows its update",
                        where=str(self._ledger.path),
                    )

        entry = {
            "v": 1,
            "run": run,
            "round": round_number,
            "members": sorted(identity.hex() for identity in cohort),
        }
        self._ledger.append(entry, unless=compare)
        return tuple(warnings.values())


def _members(line: dict[str, object]) -> list[object]:
    members = line.get("members")
    return members if isinstance(members, list) else []
