"""How many must stay, and how many may collude.

The rule is fixed, T = ⌊2n/3⌋ + 1 with n = |U1|, because it balances both ends of Bonawitz et al. 2017
(section 6.2, theorem 6.5): a server that follows the protocol, with up to T − 1 colluding members, learns
only the sum; an active one, which may show different sets to different members, fewer than 2T − n.
"""

from __future__ import annotations

from typing import Final

from fedtune.errors import Problem
from fedtune.secagg.policy import Policy
from fedtune.secagg.problems import problem

__all__ = ["COMPLETE_UP_TO", "active_colluders", "threshold", "tolerated_dropouts", "too_small"]

COMPLETE_UP_TO: Final = 128
"""Largest cohort in which everyone shares with everyone; see `graph`."""

_SUM_OF_ONE: Final = 2  # a sum of fewer honest members than this is somebody's update


def threshold(members: int) -> int:
    """T = ⌊2n/3⌋ + 1: members that must confirm, and shares that reconstruct a secret."""
    return 2 * members // 3 + 1


def tolerated_dropouts(members: int) -> int:
    """Members that may disappear after the shares are dealt: n − T."""
    return members - threshold(members)


def active_colluders(members: int) -> int:
    """Most members that may collude with an active server: the greatest c < 2T − n (n = 10: 3)."""
    return 2 * threshold(members) - members - 1


def too_small(policy: Policy, *, dealt: int, remaining: int, trip: str) -> list[Problem]:
    """Every reason for which a cohort is too small under a site's own policy.

    Args:
        policy: Held by the site, never taken from the server.
        dealt: n = |U1|, to whom shares were dealt.
        remaining: |U1|, |U2| or |U3|, whichever is proposed.
        trip: Name for the message.

    Returns:
        Problems FT908, empty when the cohort may go on.
    """
    problems: list[Problem] = []
    least = max(policy.k_min, threshold(dealt))
    if remaining < least:
        problems.append(
            problem(
                "FT908",
                f"{remaining} members in {trip}, at least {least} are needed "
                f"(k_min {policy.k_min}, threshold {threshold(dealt)} of {dealt})",
                where=trip,
            )
        )
    if policy.max_colluders > active_colluders(dealt):
        problems.append(
            problem(
                "FT908",
                f"{dealt} members withstand {active_colluders(dealt)} colluders of an active server, "
                f"the policy asks for {policy.max_colluders}",
                where=trip,
            )
        )
    if dealt > COMPLETE_UP_TO and policy.max_colluders > policy.corrupt_fraction * dealt:
        problems.append(
            problem(
                "FT908",
                f"the sharing graph of {dealt} assumes {policy.corrupt_fraction:.0%} colluders, "
                f"the policy asks for {policy.max_colluders}",
                where=trip,
            )
        )
    if remaining - policy.max_colluders < _SUM_OF_ONE:
        problems.append(
            problem(
                "FT908",
                f"{remaining} members less {policy.max_colluders} colluders leave a sum of fewer than two",
                where=trip,
            )
        )
    return problems
