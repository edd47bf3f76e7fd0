"""A round's aggregation while it grows: each update is added once, perhaps measured, and let go."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.carrying import Carried, CarryingAccumulator, begin, side_car_of
from fedtune.aggregation.control import apart
from fedtune.aggregation.meter import ErrorMeter
from fedtune.aggregation.weighting import normalised
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import Clustered, RoundAggregated
from fedtune.training.delta import Delta

__all__ = ["Concluded", "RoundSum"]


@dataclass(frozen=True, kw_only=True)
class Concluded:
    """What a round came to.

    Attributes:
        adapter: The new global adapter.
        carried: What the method remembers.
        event: For the record.
        clustered: Likewise, where sites were grouped or joined a group.
    """

    adapter: Adapter
    carried: Carried
    event: RoundAggregated
    clustered: Clustered | None = None


class RoundSum:
    """Adds updates by the configured method.

    Args:
        method: The method.
        spec: Names of the adapter's tensors.
        received: The adapter that every site of the round received.
        carried: What the method remembers of the round before.
        measure: Whether to measure the aggregation error, which keeps every update.
    """

    def __init__(
        self, method: Aggregator, spec: AdapterSpec, received: Adapter, carried: Carried, *, measure: bool
    ) -> None:
        self._method, self._received, self._before = method, received, carried
        self._accumulator = begin(method, received, carried)
        self._meter = ErrorMeter(spec, received) if measure else None
        self._seconds = 0.0

    def add(self, delta: Delta, weight: float, *, site: str = "") -> None:
        """Take one update into account; as of `fedtune.aggregation.base.Accumulator.add`.

        Args:
            delta: The update.
            weight: Its weight.
            site: Whose it is, which does not matter to one sum for all.
        """
        started = time.perf_counter()
        self._accumulator.add(delta, weight)
        if self._meter is not None:
            self._meter.add(apart(delta)[0], weight)
        self._seconds += time.perf_counter() - started

    def conclude(self, round_number: int, weights: Mapping[str, float]) -> Concluded:
        """Return the result.

        Args:
            round_number: Round, from 1.
            weights: Of the sites behind the updates, in the order of their names.

        Raises:
            UpdateError: As of `fedtune.aggregation.base.Accumulator.result`.
        """
        started = time.perf_counter()
        shares = normalised(weights)
        adapter = self._accumulator.result()
        carried, exact = self._before, self._method.exact
        if isinstance(self._accumulator, CarryingAccumulator):
            carried, exact = self._accumulator.carried(), self._accumulator.exact
        error = None
        if self._meter is not None:
            error = self._meter.result(adapter, side_car_of(self._before), side_car_of(carried))
        step = Delta(tensors={name: tensor - self._received[name] for name, tensor in adapter.items()})
        event = RoundAggregated(
            round=round_number,
            clients=tuple(shares),
            weights=tuple(shares.values()),
            aggregation_error=error,
            exact=exact,
            seconds=self._seconds + time.perf_counter() - started,
            delta_norm=step.norm,
        )
        return Concluded(adapter=adapter, carried=carried, event=event)
