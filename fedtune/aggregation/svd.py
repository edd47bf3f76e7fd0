"""The mean of the products, cut down to the adapter's rank: FlexLoRA and HLoRA.

The server forms sum_i p_i s_i B_i A_i, which is what the clients' models mean, and takes its best
approximation of rank r (Bai et al., "Federated Fine-tuning of Large Language Models under Heterogeneous
Tasks and Client Resources", NeurIPS 2024, arXiv:2402.11505; Liu et al., "HLoRA", 2025, arXiv:2503.00813).
Both papers decompose the dense matrix; here it stays a product of stacked factors
(`fedtune.aggregation.lowrank`). Singular values are split evenly, B' = U sqrt(S) and A' = sqrt(S) V^T, so
that neither factor learns faster than the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.collected import CollectedUpdates, pairs_of
from fedtune.aggregation.lowrank import Matrix, singular_terms, stacked
from fedtune.models.adapter import FACTORS, Adapter, Factor
from fedtune.training.delta import Delta

__all__ = ["SVD", "BestRank", "SvdAggregator"]


@dataclass(frozen=True, kw_only=True)
class SvdAggregator:
    """Trains A and B; gives the best adapter of its rank for the mean of the products.

    The new factors are in other coordinates than the clients' own: row k of A is another direction than
    before. An optimizer's moments for the old rows mean nothing for the new ones, and are dropped at the
    sites (`fedtune.config.methods`): the second moments of Adam, a mean of squares of each entry, have no
    rotation.
    """

    name: str = "svd"
    exact: bool = False
    label: str = (
        "best approximation of the mean of the products at the adapter's rank; inexact by what is cut"
    )

    def factors(self, round: int) -> tuple[Factor, ...]:
        if round < 1:
            raise ValueError(f"rounds count from 1, got round={round}")
        return FACTORS

    def start(self, global_adapter: Adapter) -> BestRank:
        return BestRank(global_adapter)


SVD = SvdAggregator()


class BestRank:
    """Keeps the updates of a round, and shortens their stacked factors.

    Guarantees:
        * ||sum_i p_i B_i A_i - B' A'||_F is the least that any adapter of this rank has, up to rounding.
        * The (out, in) matrix is never formed; all arithmetic is float64 and is rounded once.
        * A direction that the mean does not have leaves its row of A as received and its column of B zero:
          the product does not change, and the direction can still be trained. With both zero, no gradient
          would ever reach either.
        * Where every client did the same, its product comes back, in other factors.
    """

    def __init__(self, global_adapter: Adapter) -> None:
        self._updates = CollectedUpdates(global_adapter)

    def add(self, delta: Delta, weight: float) -> None:
        self._updates.add(delta, weight)

    def result(self) -> Adapter:
        received, shares = self._updates.received, self._updates.shares()
        result = dict.fromkeys(received, np.empty(0))
        for name_A, name_B in pairs_of(received):
            terms = zip(shares, self._updates.trained(name_B), self._updates.trained(name_A), strict=True)
            new_A, new_B = shortened(*stacked(terms), received[name_A])
            result[name_A] = new_A.astype(received[name_A].dtype)
            result[name_B] = new_B.astype(received[name_B].dtype)
        return checked_result(result)


def shortened(left: Matrix, right: Matrix, received_A: Matrix) -> tuple[Matrix, Matrix]:
    """Return A (r, in) and B (out, r), the best approximation of ``left @ right`` of the rank of
    ``received_A``.

    Rows of A that the product has no use for are those of ``received_A``.
    """
    rank = received_A.shape[0]
    terms = singular_terms(left, right)
    B, A = terms.balanced(rank)
    used = min(rank, terms.rank)
    A[used:] = received_A[used:]
    return A, B
