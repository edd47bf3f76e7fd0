"""Weighted means of the factors: FedAvg, FFA-LoRA, alternating averaging and Fed-SB.

With shares p_i = w_i / sum(w), all set each trained factor X to

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
``core``       R, as B         U mean(R) A = mean(U R A): exact; U and A are frozen, R is (r, r). Fed-SB,
                               Singhal et al., 2025, arXiv:2502.15436; the adapter is that of
                               `fedtune.models.core`, which keeps R in the place of B
``fedsa``      A and B         sites send A and keep B: mean(A) is shared, B_i mean(A) is site i's own.
                               FedSA-LoRA, Guo et al., "Selective Aggregation for Low-Rank Adaptation in
                               Federated Learning", ICLR 2025, arXiv:2410.01463
``zero_pad-``  A and B         as ``fedavg``, for sites of different ranks: rows that a site does not have
``ding``                       count as zeros. Biased: what a few sites learn shrinks every round. HetLoRA,
Cho
                               et al., EMNLP 2024, arXiv:2401.06432, without its pruning and reweighting
=============  ==============  ========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from fedtune.aggregation.checks import check_update, checked_result
from fedtune.aggregation.weighting import problem_of_total
from fedtune.errors import UpdateError
from fedtune.models.adapter import Adapter, Factor
from fedtune.training.delta import Delta

__all__ = [
    "ALTERNATING",
    "CORE",
    "FEDAVG",
    "FEDSA",
    "FFA",
    "ZERO_PADDING",
    "LinearAggregator",
    "WeightedMean",
]


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
CORE = LinearAggregator(
    name="core",
    exact=True,
    label="averages the small matrix between a frozen A and a frozen B; exact",
    schedule=(("B",),),
)
FEDSA = LinearAggregator(
    name="fedsa",
    exact=False,
    label="averages A, and each site trains and keeps a B of its own; there is no one model to compare with",
    schedule=(("A",),),
)
ZERO_PADDING = LinearAggregator(
    name="zero_padding",
    exact=False,
    label="averages A and B separately, missing rows as zeros; inexact and biased towards zero",
    schedule=(("A", "B"),),
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
        check_update(delta, weight, received=self._global, names=self._sums.keys(), number=self._clients + 1)
        for name, tensor in delta.tensors.items():
            term = np.multiply(tensor, weight, dtype=np.float64)
            if self._clients:
                self._sums[name] += term
            else:
                self._sums[name] = term
        self._total_weight += weight
        self._clients += 1

    def mean_delta(self) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
        """Return the weighted mean of each trained tensor's deltas, float64.

        Raises:
            UpdateError: FT506, the weights sum to zero, or to no number.
        """
        if not 0 < self._total_weight < inf:
            raise UpdateError(problem_of_total(self._clients, self._total_weight))
        return {name: total / self._total_weight for name, total in self._sums.items()}

    def result(self) -> Adapter:
        # An overflow is found below and reported with the tensor's name.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = self.mean_delta()
            averaged = {
                name: (tensor.astype(np.float64) + mean[name]).astype(tensor.dtype)
                if name in mean
                else tensor.copy()
                for name, tensor in self._global.items()
            }
        return checked_result(averaged)
