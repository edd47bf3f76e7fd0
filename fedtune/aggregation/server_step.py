"""What the server makes of a mean delta: momentum and adaptive steps.

With x the global adapter, D the mean of the clients' deltas and all operations elementwise:

==============
============================================================================================= ``none``
x + D ``fedavgm``     m = b m + D;  x + e m. Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
Distribution
                for Federated Visual Classification", 2019, arXiv:1909.06335
``fedadagrad``  m = b m + (1 - b) D;  v = v + D^2;  x + e m / (sqrt(v) + t)
``fedadam``     v = c v + (1 - c) D^2, the rest as ``fedadagrad``
``fedyogi``     v = v - (1 - c) D^2 sign(v - D^2), the rest as ``fedadagrad``
==============  =============================================================================================

The last three are Algorithm 2 of Reddi et al., "Adaptive Federated Optimization", ICLR 2021,
arXiv:2003.00295, with e the learning rate, b the momentum, c the second momentum, t the adaptivity, m = 0
and v = t^2 before the first round. Flower 1.41 starts v at 0 and corrects FedAdam's rate by powers of
``server_round + 1``, where rounds count from 1; both are not in the paper, and the rest of its arithmetic
is the same (a test compares). Here a tensor that a round did not train keeps its m and v and is not moved:
with ``alternating`` each factor has its own course.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedtune.aggregation.carrying import Carried
from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.lowrank import Matrix
from fedtune.config.schema import ServerOptimizerConfig
from fedtune.models.adapter import Adapter

__all__ = ["moved", "server_step"]

_MOMENTUM, _SQUARES = "momentum/", "squares/"


def server_step(
    optimizer: ServerOptimizerConfig, mean: Mapping[str, Matrix], state: Carried
) -> tuple[dict[str, Matrix], dict[str, np.ndarray[Any, np.dtype[Any]]]]:
    """Return by how much the adapter moves, and the optimizer's state after that.

    Args:
        optimizer: Its name and its constants.
        mean: Mean delta of each trained tensor, float64.
        state: Of the round before; empty before the first. It is not modified.
    """
    if optimizer.name == "none":
        return dict(mean), {}
    steps: dict[str, Matrix] = {}
    after = dict(state)
    beta, tau = optimizer.momentum, optimizer.adaptivity
    for name, delta in mean.items():
        known = state.get(_MOMENTUM + name)
        momentum = np.zeros_like(delta) if known is None else known
        if optimizer.name == "fedavgm":
            after[_MOMENTUM + name] = beta * momentum + delta
            steps[name] = optimizer.learning_rate * after[_MOMENTUM + name]
            continue
        old = state.get(_SQUARES + name)
        squares = _squares(optimizer, delta**2, np.full_like(delta, tau**2) if old is None else old)
        after[_MOMENTUM + name] = beta * momentum + (1 - beta) * delta
        after[_SQUARES + name] = squares
        steps[name] = optimizer.learning_rate * after[_MOMENTUM + name] / (np.sqrt(squares) + tau)
    return steps, after


def moved(received: Adapter, steps: Mapping[str, Matrix]) -> Adapter:
    """Return an adapter after a step: float64 arithmetic, rounded once; what no step names is copied.

    Args:
        received: The adapter before it; it is not modified.
        steps: By how much each tensor moves.

    Raises:
        UpdateError: FT508, the result is not finite.
    """
    # An overflow is found below and reported with the tensor's name.
    with np.errstate(over="ignore", invalid="ignore"):
        after = {
            name: (tensor.astype(np.float64) + steps[name]).astype(tensor.dtype)
            if name in steps
            else tensor.copy()
            for name, tensor in received.items()
        }
    return checked_result(after)


def _squares(optimizer: ServerOptimizerConfig, squared: Matrix, before: Matrix) -> Matrix:
    if optimizer.name == "fedadagrad":
        return before + squared
    rest = 1 - optimizer.second_momentum
    if optimizer.name == "fedadam":
        return optimizer.second_momentum * before + rest * squared
    yogi: Matrix = before - rest * squared * np.sign(before - squared)
    return yogi
