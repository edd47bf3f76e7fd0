"""Clusters of sites, each with an adapter of its own, as they are remembered from round to round.

Everything lies among what the method remembers (`fedtune.aggregation.carrying`), and so in the round's
checkpoint: ``cluster/2/adapter/NAME`` and ``cluster/2/state/KEY`` are the second cluster's adapter and what
its method remembers for it, and ``cluster/2/member/SITE`` is one number, what its last update weighed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any

import numpy as np

from fedtune.aggregation.carrying import Carried
from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.similarity import cosines, product_gram
from fedtune.models.adapter import Adapter
from fedtune.training.delta import Delta

__all__ = ["Cluster", "adapter_of", "clusters_as_carried", "clusters_of", "mean_adapter", "nearest"]

_CLUSTER = "cluster"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Sites that train one adapter.

    Attributes:
        adapter: Theirs.
        state: What the aggregation method remembers for it.
        members: Site to the weight of its last update.
    """

    adapter: Adapter
    state: Carried
    members: Mapping[str, float]

    @property
    def weight(self) -> float:
        """How much it counts beside others."""
        return fsum(self.members.values())


def clusters_of(carried: Carried) -> tuple[Cluster, ...]:
    """Return the clusters among what is remembered, in their order; none before they are made."""
    parts: dict[int, dict[str, dict[str, np.ndarray[Any, np.dtype[Any]]]]] = {}
    for key in sorted(carried):
        if key.startswith(f"{_CLUSTER}/"):
            _, number, kind, name = key.split("/", 3)
            parts.setdefault(int(number), {}).setdefault(kind, {})[name] = carried[key]
    return tuple(
        Cluster(
            adapter=parts[number]["adapter"],
            state=parts[number].get("state", {}),
            members={site: float(weight[0]) for site, weight in parts[number].get("member", {}).items()},
        )
        for number in sorted(parts)
    )


def clusters_as_carried(clusters: Sequence[Cluster]) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return clusters as something to remember."""
    return {
        f"{_CLUSTER}/{number}/{kind}/{name}": value
        for number, cluster in enumerate(clusters, 1)
        for kind, named in (
            ("adapter", cluster.adapter),
            ("state", cluster.state),
            ("member", {site: np.array([weight]) for site, weight in cluster.members.items()}),
        )
        for name, value in named.items()
    }


def adapter_of(clusters: Sequence[Cluster], site: str) -> Adapter | None:
    """Return the adapter of a site's cluster; None where the site is in none."""
    return next((cluster.adapter for cluster in clusters if site in cluster.members), None)


def mean_adapter(clusters: Sequence[Cluster]) -> Adapter:
    """Return the mean of the clusters' adapters, factor by factor, each weighted by its members.

    Guarantee: float64 sums in the order of the clusters, rounded once to the adapters' dtype.

    Raises:
        UpdateError: FT508, the result is not finite.
    """
    whole = fsum(cluster.weight for cluster in clusters)
    first = clusters[0].adapter
    with np.errstate(over="ignore", invalid="ignore"):
        mean = {
            name: sum(
                (cluster.weight / whole) * cluster.adapter[name].astype(np.float64) for cluster in clusters
            ).astype(tensor.dtype)  # type: ignore[union-attr]
            for name, tensor in first.items()
        }
    return checked_result(mean)


def nearest(
    delta: Delta, received: Adapter, clusters: Sequence[Cluster], pairs: Sequence[tuple[str, str]]
) -> int:
    """Return the place of the cluster that an update of a site without one points to.

    Where the update goes from the global adapter is compared with where each cluster stands from it, as
    products and by the cosine. As the global adapter is the clusters' mean, what they share is left out.

    Args:
        delta: Of the site.
        received: The global adapter, which it began with.
        clusters: All; of equally near ones the first is taken.
        pairs: As of `fedtune.aggregation.similarity.product_gram`.
    """
    stands = [
        {name: tensor.astype(np.float64) - received[name] for name, tensor in cluster.adapter.items()}
        for cluster in clusters
    ]
    similar = cosines(product_gram(received, [delta.tensors, *stands], pairs))
    return int(similar[0, 1:].argmax())
