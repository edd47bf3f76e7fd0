"""Exact averages that leave the adapter's rank: FedEx-LoRA and FLoRA, with a side-car adapter.

``fedex`` averages A and B apart, as ``fedavg`` does, and adds what that loses,

    E = sum_i p_i B_i A_i - B-bar A-bar = sum_i p_i (B_i - B-bar) (A_i - A-bar)

(Singhal et al., "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Large Language
Models", ACL 2025, arXiv:2410.09432; the second form is ours: nothing large cancels in it, and it is a
product of stacked factors).

``flora`` does not average: it stacks, so that [p_1 B_1 … p_n B_n] [A_1; …; A_n] = sum_i p_i B_i A_i, and
every round starts from an empty adapter (Wang et al., "FLoRA: Federated Fine-Tuning Large Language Models
with Heterogeneous Low-Rank Adaptations", NeurIPS 2024, arXiv:2409.05976; p_i stands at B alone: at both it
would count twice).

Both papers add the result to the base's weights. Sites hold the base in 4 or 8 bits: weights that are
rounded again lose an update of this size (more than all of it was measured). Here it goes to a **side-car**
(`fedtune.aggregation.carrying`), which grows by at most n r a round and is shortened to
``aggregation.side_car_rank`` when it would pass that: from then on a round is exact up to what is cut, and
says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedtune.aggregation.carrying import Carried, as_carried, side_car_of
from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.collected import CollectedUpdates, pairs_of
from fedtune.aggregation.linear import WeightedMean
from fedtune.aggregation.lowrank import Matrix, SingularTerms, singular_terms, stacked
from fedtune.models.adapter import FACTORS, Adapter, Factor, rank_axis
from fedtune.training.delta import Delta

__all__ = ["ResidualAggregator", "ResidualMean", "fedex", "flora"]


@dataclass(frozen=True, kw_only=True)
class ResidualAggregator:
    """Trains A and B; what their means do not hold goes to the side-car.

    Attributes:
        name: See `fedtune.aggregation.base.Aggregator`, as for the next two.
        exact: Whether a round is exact as long as nothing is cut.
        label: One line for reports.
        keeps: ``mean``: the adapter becomes the mean of the factors; ``nothing``: it starts again, B = 0.
        side_car_rank: Rank that the side-car may have; None for any.
    """

    name: str
    exact: bool = True
    label: str
    keeps: Literal["mean", "nothing"]
    side_car_rank: int | None

    def factors(self, round: int) -> tuple[Factor, ...]:
        if round < 1:
            raise ValueError(f"rounds count from 1, got round={round}")
        return FACTORS

    def start(self, global_adapter: Adapter) -> ResidualMean:
        return self.start_from(global_adapter, {})

    def start_from(self, global_adapter: Adapter, carried: Carried) -> ResidualMean:
        return ResidualMean(
            global_adapter, side_car_of(carried), keeps=self.keeps, side_car_rank=self.side_car_rank
        )


def fedex(side_car_rank: int | None) -> ResidualAggregator:
    """Return FedEx-LoRA with a side-car of at most this rank."""
    return ResidualAggregator(
        name="fedex",
        label="averages A and B separately and keeps what that loses beside them; exact until that is cut",
        keeps="mean",
        side_car_rank=side_car_rank,
    )


def flora(side_car_rank: int | None) -> ResidualAggregator:
    """Return FLoRA with a side-car of at most this rank."""
    return ResidualAggregator(
        name="flora",
        label="stacks the clients' factors beside an adapter that starts again; exact until that is cut",
        keeps="nothing",
        side_car_rank=side_car_rank,
    )


class ResidualMean:
    """Keeps the updates of a round; gives the new adapter and the new side-car.

    Guarantees:
        * B' A' + L' R' = sum_i p_i B_i A_i + L R up to rounding to the adapter's type, where ``exact``.
          Else the side-car is the best of its rank.
        * All layers' side-cars have the same rank, no larger than the larger of the numbers of inputs and
          outputs; rows and columns that a layer does not need are zero.
    """

    def __init__(
        self,
        received: Adapter,
        side_car: Mapping[str, np.ndarray[Any, Any]],
        *,
        keeps: Literal["mean", "nothing"],
        side_car_rank: int | None,
    ) -> None:
        self._updates = CollectedUpdates(received)
        self._mean = WeightedMean(received)
        self._side_car = dict(side_car)
        self._keeps, self._limit = keeps, side_car_rank
        self._cut = False

    @property
    def exact(self) -> bool:
        return not self._cut

    def add(self, delta: Delta, weight: float) -> None:
        self._updates.add(delta, weight)
        self._mean.add(delta, weight)

    def result(self) -> Adapter:
        received, shares = self._updates.received, self._updates.shares()
        new = self._mean.result() if self._keeps == "mean" else _emptied(received)
        terms: dict[tuple[str, str], SingularTerms] = {}
        for pair in pairs_of(received):
            left, right = self._left_out(pair, shares)
            if self._side_car:
                left = np.hstack([left, self._side_car[pair[1]]])
                right = np.vstack([right, self._side_car[pair[0]]])
            terms[pair] = singular_terms(left, right)
        longest = max((each.rank for each in terms.values()), default=0)
        rank = longest if self._limit is None else min(longest, self._limit)
        self._cut = longest > rank
        self._side_car = {}
        for (name_A, name_B), each in terms.items():
            if rank:
                B, A = each.balanced(rank)
                self._side_car[name_A] = A.astype(received[name_A].dtype)
                self._side_car[name_B] = B.astype(received[name_B].dtype)
        checked_result(self._side_car)
        return new

    def carried(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        return as_carried(self._side_car)

    def _left_out(self, pair: tuple[str, str], shares: list[float]) -> tuple[Matrix, Matrix]:
        """Return stacked factors of what the new adapter does not hold of the mean of the products."""
        name_A, name_B = pair
        if self._keeps == "nothing":
            return stacked(
                zip(shares, self._updates.trained(name_B), self._updates.trained(name_A), strict=True)
            )
        spread_A, spread_B = (_around_mean(list(self._updates.changes(name)), shares) for name in pair)
        return stacked(zip(shares, spread_B, spread_A, strict=True))


def _around_mean(changes: list[Matrix], shares: list[float]) -> list[Matrix]:
    # Of differences between clients: where all did the same, they are zero and not rounding.
    apart = [change - changes[0] for change in changes]
    mean = sum(share * each for share, each in zip(shares, apart, strict=True))
    return [each - mean for each in apart]


def _emptied(adapter: Adapter) -> Adapter:
    return {
        name: np.zeros_like(tensor) if rank_axis(name) == 1 else tensor.copy()
        for name, tensor in adapter.items()
    }
