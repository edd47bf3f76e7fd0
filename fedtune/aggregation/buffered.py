"""FedBuff: a step of the server from a buffer of updates that began at different adapters.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek and Huba, "Federated Learning with Buffered Asynchronous
Aggregation", AISTATS 2022, arXiv:2106.06639, Algorithm 1. With K updates D_i of weights n_i (the paper has
all alike), each of which began at the adapter from t_i steps of the server ago, the mean delta is

    D = sum_i s(t_i) n_i D_i / sum_i n_i,    s(t) = (1 + t)^-a

so that late updates count less, and a buffer of late ones moves the adapter less: the shares do not sum to
one then. a = 1/2 is the paper's 1 / sqrt(1 + t); the polynomial is that of Xie, Koyejo and Gupta,
"Asynchronous Federated Optimization", 2019, arXiv:1903.03934. What becomes of D is the server optimizer's
(`fedtune.aggregation.server_step`): the paper's server learning rate is ``fedavgm`` without momentum.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fedtune.aggregation.carrying import Carried
from fedtune.aggregation.linear import WeightedMean
from fedtune.aggregation.server_step import moved, server_step
from fedtune.config.schema import ServerOptimizerConfig
from fedtune.models.adapter import Adapter
from fedtune.training.delta import Delta

__all__ = ["BufferedMean", "discount"]


def discount(staleness: int, exponent: float) -> float:
    """Return s(t) = (1 + t)^-a, by how much an update counts.

    Args:
        staleness: Steps of the server since the adapter that the update began with, at least 0.
        exponent: a, at least 0.

    Returns:
        In (0, 1]; exactly 1 for an update that is not late.

    Raises:
        ValueError: A staleness below 0: an update of an adapter that does not exist yet.
    """
    if staleness < 0:
        raise ValueError(f"an update cannot be ahead of the server, got {staleness=}")
    return float((1.0 + staleness) ** -exponent)


class BufferedMean:
    """The updates of one step of the server.

    Guarantees:
        * Memory does not grow with the number of updates; each is added when it comes.
        * Updates that are not late give the weighted mean of `WeightedMean`, bit for bit.
        * The same calls give the same bits.

    Args:
        current: The adapter that the step moves.
        carried: What the optimizer remembers of the step before.
        optimizer: The server's.
        exponent: Of the discount.
    """

    def __init__(
        self, current: Adapter, carried: Carried, *, optimizer: ServerOptimizerConfig, exponent: float
    ) -> None:
        self._current, self._state, self._optimizer = current, carried, optimizer
        self._exponent = exponent
        self._mean = WeightedMean(current)
        self._all = self._counted = 0.0
        self._after: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}

    def add(self, delta: Delta, weight: float, staleness: int) -> None:
        """Take one update into account.

        Args:
            delta: A checked delta.
            weight: n_i, at least 0, in any unit.
            staleness: t_i.

        Raises:
            UpdateError: FT506, FT507; as of `fedtune.aggregation.base.Accumulator.add`.
        """
        counted = weight * discount(staleness, self._exponent)
        self._mean.add(delta, counted)
        self._all += weight
        self._counted += counted

    def result(self) -> Adapter:
        """Return the adapter after the step.

        Raises:
            UpdateError: FT506, FT508; as of `fedtune.aggregation.base.Accumulator.result`.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            mean = self._mean.mean_delta()
            share = self._counted / self._all
            discounted = {name: tensor * share for name, tensor in mean.items()}
            steps, self._after = server_step(self._optimizer, discounted, self._state)
        return moved(self._current, steps)

    def carried(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Return what the optimizer remembers, after `result`."""
        return dict(self._after)
