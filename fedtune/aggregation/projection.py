"""The best B for the mean A: two phases, each of them a sum.

First A-bar = sum_i p_i A_i. Then, with A-bar known to all, each site's B_i A_i is written in its rows,

    B' = sum_i p_i B_i A_i A-bar^+ = argmin_B || sum_i p_i B_i A_i - B A-bar ||_F

with the Moore-Penrose inverse (Penrose, 1956: A-bar^+ gives the least-squares solution; the two-phase
protocol is ours). So B' A-bar is never further from the mean of the products than B-bar A-bar, which
``fedavg`` gives. Both phases are linear in the sites' terms. In a plain run the server has the updates and
computes the second phase itself, from the same function that a site would use.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.collected import CollectedUpdates, pairs_of
from fedtune.aggregation.lowrank import Matrix
from fedtune.models.adapter import FACTORS, Adapter, Factor
from fedtune.training.delta import Delta

__all__ = ["PROJECTION", "ProjectedMean", "ProjectionAggregator", "in_rows_of"]


@dataclass(frozen=True, kw_only=True)
class ProjectionAggregator:
    """Trains A and B; gives the mean of A, and the B that is best beside it."""

    name: str = "projection"
    exact: bool = False
    label: str = "averages A, then fits B to the mean of the products; inexact by what the mean A cannot hold"

    def factors(self, round: int) -> tuple[Factor, ...]:
        if round < 1:
            raise ValueError(f"rounds count from 1, got round={round}")
        return FACTORS

    def start(self, global_adapter: Adapter) -> ProjectedMean:
        return ProjectedMean(global_adapter)


PROJECTION = ProjectionAggregator()


class ProjectedMean:
    """Keeps the updates of a round for its second phase.

    Guarantees:
        * B' is the least-squares best for A', up to rounding to the adapter's type.
        * Where all clients have the same A, the result is exact: it is that of ``ffa``.
    """

    def __init__(self, received: Adapter) -> None:
        self._updates = CollectedUpdates(received)

    def add(self, delta: Delta, weight: float) -> None:
        self._updates.add(delta, weight)

    def result(self) -> Adapter:
        received, shares = self._updates.received, self._updates.shares()
        result = dict.fromkeys(received, np.empty(0))
        for name_A, name_B in pairs_of(received):
            dtype = received[name_A].dtype
            changes = zip(shares, self._updates.changes(name_A), strict=True)
            result[name_A] = (received[name_A] + sum(p * change for p, change in changes)).astype(dtype)
            inverse = np.linalg.pinv(result[name_A].astype(np.float64))
            both = zip(shares, self._updates.trained(name_B), self._updates.trained(name_A), strict=True)
            new_B = sum(p * in_rows_of(inverse, B, A) for p, B, A in both)
            result[name_B] = np.asarray(new_B).astype(dtype)
        return checked_result(result)


def in_rows_of(inverse: Matrix, B: Matrix, A: Matrix) -> Matrix:
    """Return B A A-bar^+ (out, r): the second phase of one site.

    Args:
        inverse: A-bar^+ (in, r).
        B: (out, r_i).
        A: (r_i, in).
    """
    result: Matrix = B @ (A @ inverse)
    return result
