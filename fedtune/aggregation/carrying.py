"""What a method remembers from one round to the next: named arrays, kept with the round's checkpoint.

A method that needs no memory is a plain `Aggregator`. One that does has ``start_from`` beside ``start``,
and its accumulators say after ``result`` what to remember. Nothing is hidden in the method itself, so a run
that is resumed from a checkpoint goes on bit for bit.

A **side-car** is one thing to remember: a second, frozen adapter of any rank, with the names of the first
one under ``side_car/``. It is part of the global model: sites receive it, apply it and never train it. A
layer computes ``W x + s (B A + L R) x``, with the side-car's L in the place of B and R in that of A, and
one scaling s = alpha / r.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.models.adapter import Adapter, rank_axis

__all__ = [
    "Carried",
    "CarryingAccumulator",
    "CarryingAggregator",
    "as_carried",
    "begin",
    "side_car_of",
    "with_side_car",
]

Carried: TypeAlias = Mapping[str, np.ndarray[Any, np.dtype[Any]]]
"""Arrays by name; empty before the first round, and for most methods always."""

_SIDE_CAR = "side_car/"


@runtime_checkable
class CarryingAccumulator(Accumulator, Protocol):
    """An accumulator that leaves something for the next round."""

    @property
    def exact(self) -> bool:
        """Whether this round's result was exact; known after ``result``."""

    def carried(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Return what to remember; known after ``result``."""


@runtime_checkable
class CarryingAggregator(Aggregator, Protocol):
    """A method that remembers something."""

    def start_from(self, global_adapter: Adapter, carried: Carried) -> CarryingAccumulator:
        """Begin a round after one that left ``carried``; neither is modified."""


def begin(method: Aggregator, global_adapter: Adapter, carried: Carried) -> Accumulator:
    """Begin a round of any method."""
    if isinstance(method, CarryingAggregator):
        return method.start_from(global_adapter, carried)
    return method.start(global_adapter)


def side_car_of(carried: Carried) -> Adapter:
    """Return the side-car among what is remembered; empty where there is none."""
    return {
        name.removeprefix(_SIDE_CAR): tensor for name, tensor in carried.items() if name.startswith(_SIDE_CAR)
    }


def as_carried(side_car: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Return a side-car as something to remember."""
    return {_SIDE_CAR + name: tensor for name, tensor in side_car.items()}


def with_side_car(adapter: Adapter, side_car: Mapping[str, np.ndarray[Any, Any]]) -> Adapter:
    """Return one adapter that computes what both do: rows of A and columns of B one after the other."""
    if not side_car:
        return adapter
    return {
        name: np.concatenate([tensor, side_car[name]], axis=rank_axis(name))
        for name, tensor in adapter.items()
    }
