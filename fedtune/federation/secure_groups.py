"""A robust mean under masks: a secure sum of each fixed group of sites, and the median of their means.

The server learns the sum of each group and nothing finer. With G groups of which f hold a false site, the
median of each value over the G means lies among the means of groups without one as long as 2 f < G. So it
stands false sites in fewer than half of the groups: at most ceil(G / 2) - 1 of them, wherever they are,
where plain secure aggregation stands none.

Secure averages inside clusters and a robust rule over them are SHARE (Velicheti, Xia and Koyejo, "Secure
Byzantine-Robust Distributed Learning via Clustering", 2021, arXiv:2110.02940, algorithm 1); a median of
means against false workers is Chen, Su and Xu, "Distributed Statistical Machine Learning in Adversarial
Settings", POMACS 1(2), 2017, with a geometric median. SHARE draws new clusters again and again, which lets
the server subtract sums of different clusters. Here the groups stay as they are, and one is in a round whole
or not at all, as the batches of So et al. ("Securing Secure Aggregation: Mitigating Multi-Round Privacy
Leakage in Federated Learning", AAAI 2023, section 4): no two sums differ by less than a group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtune.data.seeds import derive_seed
from fedtune.errors import SecureAggregationError
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.problems import problem, refusal
from fedtune.secagg.roster import Roster

__all__ = ["GroupMean", "beyond_bounds", "drawn_groups", "median_of_means", "too_few_groups", "whole_groups"]

Means = Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]

_SLACK = 2.0**-40
"""Relative: decoding is done in doubles."""


@dataclass(frozen=True, kw_only=True)
class GroupMean:
    """What a group's sum says.

    Attributes:
        clients: Names of the sites in it, in order.
        mean: Weighted mean of their clipped updates.
        attempts: How many it took.
    """

    clients: tuple[str, ...]
    mean: Means
    attempts: int


def drawn_groups(names: Sequence[str], count: int, seed: int) -> dict[str, str]:
    """Draw fixed groups for a simulation: name of each site to that of its group.

    Args:
        names: Of all sites.
        count: Groups; their sizes differ by one at most. 1 gives no groups: every site in the group "".
        seed: The run's.
    """
    ordered = sorted(names)
    if count == 1:
        return dict.fromkeys(ordered, "")
    stream = np.random.default_rng(derive_seed(seed, "groups", count))
    order = stream.permutation(len(ordered)).tolist()
    return {ordered[place]: f"group{number % count + 1}" for number, place in enumerate(order)}


def whole_groups(
    roster: Roster, invited: frozenset[bytes], *, k_min: int
) -> tuple[dict[str, frozenset[bytes]], dict[str, SecureAggregationError]]:
    """Return the groups that can open a sum, and why each other one cannot.

    Args:
        roster: The version in force. Who is in no group takes no part.
        invited: Identities of the round's cohort.
        k_min: Smallest sum that a site takes part in.
    """
    whole: dict[str, frozenset[bytes]] = {}
    broken: dict[str, SecureAggregationError] = {}
    for name, members in sorted(roster.groups.items()):
        present = len(members & invited)
        if len(members) < k_min:
            what = f"group {name} has {len(members)} sites, and no sum is over fewer than {k_min}"
        elif present < len(members):
            what = f"{present} of {len(members)} sites of group {name} are there, and it takes part whole"
        else:
            whole[name] = members
            continue
        broken[name] = refusal("FT908", what, where=f"group {name}")
    return whole, broken


def beyond_bounds(mean: Means, encoding: Encoding) -> SecureAggregationError | None:
    """Return FT921 where a decoded mean cannot come of updates that were clipped to the public bounds.

    A false site can add any ring element, and nobody sees it do so. Sites would refuse the adapter that
    such a sum leads to, all of them.
    """
    problems = []
    for tensor in encoding.tensors:
        allowed = tensor.bound * (1 + encoding.excess) * (1 + _SLACK)
        furthest = float(np.max(np.abs(mean[tensor.name]), initial=0.0))
        if not furthest <= allowed:
            what = f"{tensor.name} moves by {furthest:.3g}, at most {allowed:.3g} can come of clipped updates"
            problems.append(problem("FT921", what, where=tensor.name))
    return SecureAggregationError(problems) if problems else None


def median_of_means(means: Sequence[Means]) -> Means:
    """Return the median of each value over the groups; of one group, its mean, bit for bit.

    Groups count alike, whatever their sites weigh.
    """
    if len(means) == 1:
        return means[0]
    return {name: np.median(np.stack([mean[name] for mean in means]), axis=0) for name in means[0]}


def too_few_groups(*, opened: int, groups: int, sites: int, quorum: int) -> SecureAggregationError | None:
    """Return FT920 where half of the groups or more gave no sum, or the rest are below the quorum."""
    if 2 * opened <= groups:
        return refusal(
            "FT920", f"{opened} of {groups} groups gave a sum, more than half have to", where="round"
        )
    if sites < quorum:
        return refusal(
            "FT920", f"the groups that gave a sum have {sites} sites, the quorum is {quorum}", where="round"
        )
    return None
