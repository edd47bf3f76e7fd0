"""One round of aggregation on plain arrays, and the dense products that it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedtune.aggregation.base import Aggregator
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.training.delta import Delta

__all__ = ["Dense", "aggregate", "dense_mean", "product", "trained"]

Dense = np.ndarray[Any, np.dtype[np.float64]]


def aggregate(
    method: Aggregator, received: Adapter, deltas: Sequence[Delta], weights: Sequence[float]
) -> Adapter:
    accumulator = method.start(received)
    for delta, weight in zip(deltas, weights, strict=True):
        accumulator.add(delta, weight)
    return accumulator.result()


def trained(received: Adapter, delta: Delta) -> dict[str, Dense]:
    return {name: value.astype("float64") + delta.tensors.get(name, 0.0) for name, value in received.items()}


def product(adapter: Adapter, pair: tuple[str, str]) -> Dense:
    """B A of a pair (name of A, name of B), in float64."""
    result: Dense = adapter[pair[1]].astype("float64") @ adapter[pair[0]].astype("float64")
    return result


def dense_mean(
    spec: AdapterSpec, received: Adapter, deltas: Sequence[Delta], weights: Sequence[float]
) -> list[Dense]:
    """sum_i p_i B_i A_i of each layer, written out."""
    clients = [trained(received, delta) for delta in deltas]
    return [
        np.average([product(client, pair) for client in clients], axis=0, weights=weights)
        for pair in spec.pairs
    ]
