"""A round's aggregation where sites are grouped (``personal=clusters``): one sum for each cluster.

    warm-up      one adapter for all, as without clusters
    clustering   the round after it: every site is asked, its update is kept, sites are grouped by them, and
                 each group's updates become the first adapter of its cluster
    afterwards   a site trains its cluster's adapter, and its update counts there alone

The global adapter is the mean of the clusters' from then on. A site that is in none, as it came later or
missed that round, trains the global adapter once: that update counts nowhere, as it began elsewhere than a
cluster's own, and says which cluster the site belongs to.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.carrying import Carried, CarryingAccumulator, begin
from fedtune.aggregation.clustering import grouped
from fedtune.aggregation.clusters import (
    Cluster,
    clusters_as_carried,
    clusters_of,
    mean_adapter,
    nearest,
)
from fedtune.aggregation.lowrank import Matrix
from fedtune.aggregation.similarity import deviation_cosines, product_gram
from fedtune.aggregation.weighting import normalised
from fedtune.config.schema import PersonalConfig
from fedtune.federation.round_sum import Concluded, RoundSum
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import Clustered, RoundAggregated
from fedtune.observability.statistics import mean
from fedtune.training.delta import Delta

__all__ = ["ClusteredSum", "ClusteringSum", "begin_sum", "makes_clusters"]


def makes_clusters(personal: PersonalConfig, carried: Carried, round_number: int) -> bool:
    """Say whether sites are grouped by the updates of a round; it asks all of them, and not those drawn."""
    due = personal.name == "clusters" and round_number > personal.warm_up_rounds
    return due and not clusters_of(carried)


def begin_sum(
    method: Aggregator,
    spec: AdapterSpec,
    received: Adapter,
    carried: Carried,
    *,
    personal: PersonalConfig,
    round_number: int,
    measure: bool,
) -> RoundSum | ClusteringSum | ClusteredSum:
    """Begin a round's aggregation, of one adapter or of several.

    Args:
        method: The method.
        spec: Of the adapter.
        received: The global adapter that the round begins with.
        carried: What is remembered of the round before, the clusters included.
        personal: Whether there are clusters.
        round_number: From 1.
        measure: As of `fedtune.federation.round_sum.RoundSum`.
    """

    def whole() -> RoundSum:
        return RoundSum(method, spec, received, carried, measure=measure)

    clusters = clusters_of(carried)
    if clusters:
        return ClusteredSum(method, spec, received, clusters)
    if personal.clusters is not None and makes_clusters(personal, carried, round_number):
        return ClusteringSum(method, spec, received, carried, number=personal.clusters, whole=whole)
    return whole()


class ClusteringSum:
    """The round in which clusters are made; with fewer updates than clusters they are made in a later one.

    Every update is held until the round's end.
    """

    def __init__(
        self,
        method: Aggregator,
        spec: AdapterSpec,
        received: Adapter,
        carried: Carried,
        *,
        number: int,
        whole: Callable[[], RoundSum],
    ) -> None:
        self._method, self._spec, self._received, self._before = method, spec, received, carried
        self._number, self._whole = number, whole
        self._held: dict[str, tuple[Delta, float]] = {}

    def add(self, delta: Delta, weight: float, *, site: str) -> None:
        """Keep one site's update."""
        self._held[site] = delta, weight

    def conclude(self, round_number: int, weights: Mapping[str, float]) -> Concluded:
        """Return the result; as of `fedtune.federation.round_sum.RoundSum.conclude`."""
        started = time.perf_counter()
        names = sorted(self._held)
        if len(names) < self._number:
            total = self._whole()
            for name in names:
                total.add(*self._held[name], site=name)
            return total.conclude(round_number, weights)
        shares = normalised(weights)
        changes = [self._held[name][0].tensors for name in names]
        similar = deviation_cosines(product_gram(self._received, changes, self._spec.pairs))
        found = grouped(1.0 - similar, self._number)
        clusters = [self._cluster([names[place] for place in group]) for group in found.groups]
        within, between = _similarities(similar, found.groups)
        event = Clustered(
            round=round_number,
            clusters=tuple(tuple(cluster.members) for cluster in clusters),
            joined=tuple(names),
            similarity_within=within,
            similarity_between=between,
            merge_distances=found.merge_distances,
        )
        return _concluded(
            self._method, self._received, clusters, round_number, shares, event=event, started=started
        )

    def _cluster(self, sites: Sequence[str]) -> Cluster:
        accumulator = begin(self._method, self._received, self._before)
        for site in sites:
            accumulator.add(*self._held[site])
        members = {site: self._held[site][1] for site in sites}
        return _next(accumulator, self._before, members)


class ClusteredSum:
    """A round of clusters that are there.

    Guarantees:
        * A cluster's adapter is that of a federation of its members alone, bit for bit; a cluster of which
          nobody trained keeps its adapter.
        * Memory grows with the number of clusters and not with that of sites.
    """

    def __init__(
        self, method: Aggregator, spec: AdapterSpec, received: Adapter, clusters: Sequence[Cluster]
    ) -> None:
        self._method, self._spec, self._received, self._clusters = method, spec, received, clusters
        self._sums: dict[int, Accumulator] = {}
        self._weights: list[dict[str, float]] = [{} for _ in clusters]
        self._joined: list[dict[str, float]] = [{} for _ in clusters]
        self._seconds = 0.0

    def add(self, delta: Delta, weight: float, *, site: str) -> None:
        """Take one update into account; as of `fedtune.aggregation.base.Accumulator.add`."""
        started = time.perf_counter()
        places = (place for place, cluster in enumerate(self._clusters) if site in cluster.members)
        place = next(places, None)
        if place is None:
            self._joined[nearest(delta, self._received, self._clusters, self._spec.pairs)][site] = weight
        else:
            cluster = self._clusters[place]
            if place not in self._sums:
                self._sums[place] = begin(self._method, cluster.adapter, cluster.state)
            self._sums[place].add(delta, weight)
            self._weights[place][site] = weight
        self._seconds += time.perf_counter() - started

    def conclude(self, round_number: int, weights: Mapping[str, float]) -> Concluded:
        """Return the result.

        Args:
            round_number: Round, from 1.
            weights: Of the sites behind the updates, in the order of their names.

        Raises:
            UpdateError: As of `fedtune.aggregation.base.Accumulator.result`, of any cluster.
        """
        started = time.perf_counter() - self._seconds
        joined = sorted(site for each in self._joined for site in each)
        counted = {site: weight for site, weight in weights.items() if site not in joined}
        clusters = [self._next(place) for place in range(len(self._clusters))]
        event = None
        if joined:
            event = Clustered(
                round=round_number,
                clusters=tuple(tuple(cluster.members) for cluster in clusters),
                joined=tuple(joined),
                similarity_within=None,
                similarity_between=None,
                merge_distances=(),
            )
        shares = normalised(counted) if counted else {}
        return _concluded(
            self._method, self._received, clusters, round_number, shares, event=event, started=started
        )

    def _next(self, place: int) -> Cluster:
        cluster = self._clusters[place]
        members = {**cluster.members, **self._weights[place], **self._joined[place]}
        members = dict(sorted(members.items()))
        if place not in self._sums:
            return Cluster(adapter=cluster.adapter, state=cluster.state, members=members)
        return _next(self._sums[place], cluster.state, members)


def _next(accumulator: Accumulator, before: Carried, members: Mapping[str, float]) -> Cluster:
    adapter = accumulator.result()
    state = accumulator.carried() if isinstance(accumulator, CarryingAccumulator) else before
    return Cluster(adapter=adapter, state=state, members=members)


def _concluded(
    method: Aggregator,
    received: Adapter,
    clusters: Sequence[Cluster],
    round_number: int,
    shares: Mapping[str, float],
    *,
    event: Clustered | None,
    started: float,
) -> Concluded:
    """Return a round's result: the mean of the clusters, and the clusters among what is remembered."""
    adapter = mean_adapter(clusters)
    step = Delta(tensors={name: tensor - received[name] for name, tensor in adapter.items()})
    aggregated = RoundAggregated(
        round=round_number,
        clients=tuple(shares),
        weights=tuple(shares.values()),
        aggregation_error=None,
        exact=method.exact,
        seconds=time.perf_counter() - started,
        delta_norm=step.norm,
    )
    return Concluded(
        adapter=adapter, carried=clusters_as_carried(clusters), event=aggregated, clustered=event
    )


def _similarities(similar: Matrix, groups: Sequence[Sequence[int]]) -> tuple[float | None, float | None]:
    """Return the mean cosines of pairs within a group and of pairs in two."""
    of = {place: number for number, group in enumerate(groups) for place in group}
    pairs = list(combinations(range(len(similar)), 2))
    within = mean(float(similar[pair]) for pair in pairs if of[pair[0]] == of[pair[1]])
    between = mean(float(similar[pair]) for pair in pairs if of[pair[0]] != of[pair[1]])
    return within, between
