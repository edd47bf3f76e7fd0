"""One step of the server where sites train at their own pace: a buffer that fills, and what it comes to."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, field

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.buffered import BufferedMean, discount
from fedtune.aggregation.carrying import Carried
from fedtune.aggregation.weighting import normalised
from fedtune.config.schema import Config
from fedtune.federation.round_sum import Concluded
from fedtune.models.adapter import Adapter
from fedtune.observability.events import RoundAggregated
from fedtune.training.delta import Delta

__all__ = ["Filling"]


@dataclass(kw_only=True)
class Filling:
    """Updates are added as they come, and let go.

    Guarantee: never more than ``asynchronous.buffer`` updates are in it.

    Attributes:
        config: The whole configuration.
        method: The aggregation method, for the record.
        current: The adapter that the step moves.
        before: What the server's optimizer remembers.
    """

    config: Config
    method: Aggregator
    current: Adapter
    before: Carried
    _mean: BufferedMean = field(init=False)
    _weights: dict[str, float] = field(init=False, default_factory=dict)
    _count: int = field(init=False, default=0)
    _late: bool = field(init=False, default=False)
    _seconds: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        self._mean = BufferedMean(
            self.current,
            self.before,
            optimizer=self.config.server_optimizer,
            exponent=self.config.asynchronous.staleness_exponent,
        )

    @property
    def room(self) -> int:
        """How many updates are still missing."""
        return self.config.asynchronous.buffer - self._count

    @property
    def sites(self) -> Collection[str]:
        """Whose updates are in it."""
        return self._weights.keys()

    def add(self, site: str, delta: Delta, weight: float, staleness: int) -> float:
        """Take an update.

        Args:
            site: Whose it is.
            delta: In the shapes of the adapter.
            weight: Not normalised.
            staleness: Steps of the server since the adapter that it began with.

        Returns:
            How much it counts, not normalised.

        Raises:
            UpdateError: FT506, FT507.
            ValueError: There is no room.
        """
        if self.room < 1:
            raise ValueError("the buffer is full")
        started = time.perf_counter()
        self._mean.add(delta, weight, staleness)
        counted = weight * discount(staleness, self.config.asynchronous.staleness_exponent)
        self._weights[site] = self._weights.get(site, 0.0) + counted
        self._count += 1
        self._late = self._late or staleness > 0
        self._seconds += time.perf_counter() - started
        return counted

    def conclude(self, step: int) -> Concluded:
        """Return what the step comes to.

        Args:
            step: Which step of the server this is, from 1.

        Raises:
            UpdateError: FT506, FT508.
        """
        started = time.perf_counter()
        shares = normalised(dict(sorted(self._weights.items())))
        adapter = self._mean.result()
        moved = Delta(tensors={name: tensor - self.current[name] for name, tensor in adapter.items()})
        event = RoundAggregated(
            round=step,
            clients=tuple(shares),
            weights=tuple(shares.values()),
            aggregation_error=None,
            exact=self.method.exact and not self._late,
            seconds=self._seconds + time.perf_counter() - started,
            delta_norm=moved.norm,
        )
        return Concluded(adapter=adapter, carried=self._mean.carried(), event=event)
