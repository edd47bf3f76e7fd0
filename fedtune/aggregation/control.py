"""SCAFFOLD at the server: a mean of deltas, and beside it the mean of the sites' control variates.

Karimireddy et al., "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML 2020,
arXiv:1910.06378, Algorithm 1. With x the global adapter, N sites and a round S of them:

    site i:   y = y - rate * (g_i(y) - c_i + c)        K times, from y = x     (Eq. 3)
              c_i' = the mean of the K gradients g_i(y)
    server:   x = x + (what the method makes of the deltas y_i - x)
              c = c + (1 / N) sum_{i in S} (c_i' - c_i)                        (Eq. 5)

The paper's option II is c_i' = c_i - c + (x - y_i) / (K rate). With plain SGD at one rate that *is* the mean
of the gradients, as (x - y_i) / (K rate) is the mean of g_i - c_i + c. With AdamW, a schedule or clipping it
is not: a step of AdamW is no gradient, and added to gradients it would be in another unit. The mean of the
gradients is what option II stands for, in the unit of gradients whatever the optimizer is; the correction is
made before the optimizer sees the gradient. The proofs of the paper are for SGD alone.

Sites weigh the same: c has to be the mean of what corrects them, or the corrections of all sites do not add
up to nothing. A factor that a round does not train keeps its variates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.carrying import Carried, CarryingAccumulator, begin
from fedtune.models.adapter import Adapter, Factor
from fedtune.training.delta import Delta

__all__ = ["ControlledAggregator", "ControlledRound", "apart", "as_controls", "control_name", "controls_of"]

_CONTROL = "control/"


def control_name(name: str) -> str:
    """Return what the control variate of a tensor is called beside it."""
    return _CONTROL + name


def as_controls(tensors: Adapter) -> Adapter:
    """Return control variates under the names that they have beside an adapter."""
    return {control_name(name): tensor for name, tensor in tensors.items()}


def controls_of(carried: Carried, received: Adapter) -> Adapter:
    """Return the mean of the control variates among what is remembered, of the adapter's type.

    Args:
        carried: What the round before left; before the first round all variates are zero.
        received: The global adapter.
    """
    return {
        name: np.asarray(carried.get(_CONTROL + name, np.zeros(tensor.shape)), dtype=tensor.dtype)
        for name, tensor in received.items()
    }


def apart(delta: Delta) -> tuple[Delta, Adapter]:
    """Return a delta without the changes of control variates in it, and these by tensor."""
    return (
        Delta(tensors={name: value for name, value in delta.tensors.items() if not _is_control(name)}),
        {name.removeprefix(_CONTROL): value for name, value in delta.tensors.items() if _is_control(name)},
    )


def _is_control(name: str) -> bool:
    return name.startswith(_CONTROL)


@dataclass(frozen=True, kw_only=True)
class ControlledAggregator:
    """A method whose deltas come with changes of control variates.

    Attributes:
        method: The method.
        sites: Sites of the federation N, those that are not drawn included.
    """

    method: Aggregator
    sites: int

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def exact(self) -> bool:
        return self.method.exact

    @property
    def label(self) -> str:
        return f"{self.method.label}; gradients corrected by control variates"

    def factors(self, round: int) -> tuple[Factor, ...]:
        return self.method.factors(round)

    def start(self, global_adapter: Adapter) -> ControlledRound:
        return self.start_from(global_adapter, {})

    def start_from(self, global_adapter: Adapter, carried: Carried) -> ControlledRound:
        inner = begin(self.method, global_adapter, carried)
        return ControlledRound(inner, carried, exact=self.method.exact, sites=self.sites)


class ControlledRound:
    """One round of it.

    Guarantees:
        * One more array is held for each trained tensor, however many sites there are.
        * Variates are float64 in the sum and in what is remembered.
    """

    def __init__(self, inner: Accumulator, carried: Carried, *, exact: bool, sites: int) -> None:
        self._inner, self._exact, self._sites = inner, exact, sites
        self._controls = {name: tensor for name, tensor in carried.items() if _is_control(name)}
        self._sums: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}

    @property
    def exact(self) -> bool:
        return self._inner.exact if isinstance(self._inner, CarryingAccumulator) else self._exact

    def add(self, delta: Delta, weight: float) -> None:
        change, controls = apart(delta)
        self._inner.add(change, weight)
        for name, value in as_controls(controls).items():
            self._sums[name] = self._sums.get(name, np.zeros(value.shape)) + value

    def result(self) -> Adapter:
        return self._inner.result()

    def carried(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        beside = self._inner.carried() if isinstance(self._inner, CarryingAccumulator) else {}
        moved = {
            name: self._controls.get(name, np.zeros(total.shape)) + total / self._sites
            for name, total in self._sums.items()
        }
        return beside | self._controls | moved
