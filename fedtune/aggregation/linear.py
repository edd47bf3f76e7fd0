"""Weighted means of the factors: FedAvg, FFA-LoRA and alternating averaging.

With shares p_i = w_i / sum(w), all three set each trained factor X to

    X' = X + sum_i p_i * (X_i - X) = sum_i p_i * X_i

and differ in which factors a round trains:

=============  ==============  ========================================================================
name           trains          the product B A that results
=============  ==============  ========================================================================
``fedavg``     A and B         mean(B) mean(A), which is not mean(B A): inexact. FedIT, Zhang et al.,
                               "Towards Building the Federated GPT", 2024, arXiv:2305.05644
``ffa``        B               mean(B) A = mean(B A): exact; A keeps its seeded start. FFA-LoRA, Sun et
                               al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024
``alternating``  B, then A      exact in every round, as in each one factor is the same everywhere.
                               RoLoRA, Chen et al., "Robust Federated Finetuning of LLMs via Alternating
                               Optimization of LoRA", NeurIPS 2025, arXiv:2502.01755
=============  ==============  ========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from fedtune.aggregation.weighting import is_weight, problem_of_total, problem_of_weight
from fedtune.errors import Problem, UpdateError
from fedtune.models.adapter import Adapter, Factor
from fedtune.training.delta import Delta
from fedtune.updates.problems import capped, not_finite, shown

__all__ = ["ALTERNATING", "FEDAVG", "FFA", "LinearAggregator", "WeightedMean"]


@dataclass(frozen=True, kw_only=True)
class LinearAggregator:
    """A weighted mean of the factors that a schedule names.

    Attributes:
        name: See `fedtune.aggregation.base.Aggregator`, as for the next two.
        exact: Whether the product of the means is the mean of the products.
        label: One line for reports.
        schedule: Factors of round 1, 2, …; it repeats.
    """

    name: str
    exact: bool
    label: str
    schedule: tuple[tuple[Factor, ...], ...]

    def factors(self, round: int) -> tuple[Factor, ...]:
        if round < 1:
            raise ValueError(f"rounds count from 1, got round={round}")
        return self.schedule[(round - 1) % len(self.schedule)]

    def start(self, global_adapter: Adapter) -> WeightedMean:
        return WeightedMean(global_adapter)


FEDAVG = LinearAggregator(
    name="fedavg",
    exact=False,
    label="averages A and B separately; inexact: the mean of products is not the product of means",
    schedule=(("A", "B"),),
)
FFA = LinearAggregator(
    name="ffa",
    exact=True,
    label="A stays frozen, averages B; exact",
    schedule=(("B",),),
)
ALTERNATING = LinearAggregator(
    name="alternating",
    exact=True,
    label="averages B in odd rounds and A in even rounds; exact each time",
    schedule=(("B",), ("A",)),
)


class WeightedMean:
    """A running weighted sum of deltas on top of the adapter that every client received.

    Guarantees:
        * Sums are float64, elementwise, in the order of `add`; the result is rounded once, to the
          adapter's dtype. The same calls give the same bits, on every machine.
        * Two arrays are held for each trained tensor (the sum and one term), however many clients there are.
        * A factor that no delta holds comes back bitwise unchanged, as a copy.
    """

    def __init__(self, global_adapter: Adapter) -> None:
        self._global = global_adapter
        self._sums: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
        self._total_weight = 0.0
        self._clients = 0

    def add(self, delta: Delta, weight: float) -> None:
        problems = capped(self._problems(delta, weight))
        if problems:
            raise UpdateError(problems)
        for name, tensor in delta.tensors.items():
            term = np.multiply(tensor, weight, dtype=np.float64)
            if self._clients:
                self._sums[name] += term
            else:
                self._sums[name] = term
        self._total_weight += weight
        self._clients += 1

    def result(self) -> Adapter:
        if not 0 < self._total_weight < inf:
            raise UpdateError(problem_of_total(self._clients, self._total_weight))
        # An overflow is found below and reported with the tensor's name.
        with np.errstate(over="ignore", invalid="ignore"):
            averaged = {
                name: self._moved(name, tensor) if name in self._sums else tensor.copy()
                for name, tensor in self._global.items()
            }
        problems = capped(_problems_of_result(averaged))
        if problems:
            raise UpdateError(problems)
        return averaged

    def _moved(self, name: str, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        moved = tensor.astype(np.float64) + self._sums[name] / self._total_weight
        return moved.astype(tensor.dtype)

    def _problems(self, delta: Delta, weight: float) -> Iterator[Problem]:
        where = f"delta {self._clients + 1} of the round, in the order of the clients' names"
        if not is_weight(weight):
            yield problem_of_weight(where, weight)
        if not delta.tensors:
            yield _differs("it holds no tensors", where)
        if self._clients and delta.tensors.keys() != self._sums.keys():
            only_one = sorted(delta.tensors.keys() ^ self._sums.keys())
            yield _differs(
                f"{len(only_one):,} tensors are not in both this delta and the ones before it, the first is "
                f"{shown(only_one[0])}",
                where,
            )
        for name, tensor in delta.tensors.items():
            if name not in self._global:
                yield _differs(f"the adapter has no tensor {shown(name)}", where)
            elif tensor.shape != self._global[name].shape:
                yield _differs(
                    f"tensor {shown(name)} has shape {tensor.shape}, the adapter's is "
                    f"{self._global[name].shape}",
                    where,
                )


def _differs(what: str, where: str) -> Problem:
    return Problem(
        code="FT507",
        what=what,
        where=where,
        fix="every client of a round trains the same factors of the same adapter: compare their settings",
    )


def _problems_of_result(adapter: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Problem]:
    for name, tensor in adapter.items():
        problem = not_finite(name, tensor, "the aggregated adapter")
        if problem is not None:
            yield Problem(
                code="FT508",
                what=problem.what,
                where=problem.where,
                fix="lower training.learning_rate: the clients' deltas overflow the adapter's type",
            )
