"""What a cohort is promised, in words and numbers: printed at the start and quoted in the documentation."""

from __future__ import annotations

from fedtune.secagg.graph import graph_shape
from fedtune.secagg.policy import Policy
from fedtune.secagg.thresholds import active_colluders, threshold, tolerated_dropouts

__all__ = ["promise"]


def promise(members: int, policy: Policy, *, groups: int = 1) -> tuple[str, ...]:
    """Lines that say what secure aggregation holds and does not hold for a cohort of this size.

    Args:
        members: n, the sites that take part; of the smallest group, where there are groups.
        policy: The site's own; k_min, max_colluders and, above 128 members, the assumed fractions.
        groups: Fixed groups with a sum each.
    """
    shape = graph_shape(members, policy.corrupt_fraction, policy.drop_fraction)
    needed = threshold(members)
    lines = [
        f"secure aggregation over {members} sites: {needed} of them must confirm each sum",
        f"tolerated dropouts: {tolerated_dropouts(members)}; smallest cohort here: {policy.k_min}",
    ]
    if shape.complete:
        lines += [
            f"against a server that follows the protocol, {needed - 1} colluding sites learn only the sum",
            f"against an active server, {active_colluders(members)} colluding sites do",
        ]
    else:
        corrupt = policy.corrupt_fraction
        lines += [
            f"each site shares keys with {2 * shape.half_degree} others, of whom {shape.share_threshold} "
            "reconstruct a dropped one",
            f"assumed: at most {corrupt:.0%} of the sites collude and {policy.drop_fraction:.0%} drop out; "
            "then privacy fails with probability at most 2^-128, and a round with at most 2^-30",
        ]
    if groups > 1:
        lines.insert(
            0,
            f"the server learns {groups} sums a round, one of each group; a group takes part whole or not at "
            f"all, and the smallest has {members} sites, for which the rest holds",
        )
    if members == 3:
        lines.append("three sites survive no dropout, and any two of them learn the third's update")
    lines.append(
        "secure aggregation is not differential privacy: sums over changing cohorts can be subtracted"
    )
    return tuple(lines)
