"""Which sites train one adapter together, how alike their updates were, and what it gave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedtune.observability import wording
from fedtune.observability.markup import Markup
from fedtune.observability.report.parts import section, table
from fedtune.observability.statistics import mean

__all__ = ["clusters"]


def clusters(summary: Mapping[str, Any]) -> Markup | None:
    """Return the clusters with their members and mean losses; None for a run without any."""
    told = summary["clusters"]
    if told is None:
        return None
    rows = []
    for number, names in enumerate(told["members"], 1):
        sites = [summary["sites"][name] for name in names if name in summary["sites"]]
        losses = [mean(site[kind] for site in sites) for kind in ("base", "federated", "personalised")]
        rows.append([str(number), wording.listing(names), *map(wording.loss, losses)])
    lead = (
        f"After round {told['round']} the sites of a cluster train one adapter together; they were grouped "
        f"by their updates of that round. {_similarity(told)}{_distances(told)}"
    )
    return section(
        "Clusters",
        table(
            "Clusters",
            ["Cluster", "Sites", "Base", "Mean of all clusters", "The cluster's own"],
            rows,
            words=(0, 1),
        ),
        lead=lead,
    )


def _similarity(told: Mapping[str, Any]) -> str:
    within, between = (told[f"similarity_{where}"] for where in ("within", "between"))
    if within is None or between is None:
        return ""
    return (
        "What sets two sites' updates apart from the mean of all points the same way with a cosine of "
        f"{wording.signed(within)} inside a cluster and {wording.signed(between)} between two, on average. "
    )


def _distances(told: Mapping[str, Any]) -> str:
    number, found = len(told["members"]), told["merge_distances"]
    if number > len(found):
        return "Every site was a cluster of its own."
    return (
        f"One cluster less would have merged two at a mean distance of {found[number - 2]:.2f}; one more "
        f"would have parted two at {found[number - 1]:.2f}. Where these are near each other, another number "
        "of clusters is as good."
    )
