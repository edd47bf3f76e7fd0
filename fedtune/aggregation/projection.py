"""The best B for the mean A: two phases, each of them a sum.

First A-bar = sum_i p_i A_i. Then, with A-bar known to all, each site's B_i A_i is written in its rows,

    B' = sum_i p_i B_i A_i A-bar^+ = argmin_B || sum_i p_i B_i A_i - B A-bar ||_F

with the Moore-Penrose inverse (Penrose, 1956: A-bar^+ gives the least-squares solution; the two-phase
protocol is ours). So B' A-bar is never further from the mean of the products than B-bar A-bar, which
``fedavg`` gives. Both phases are linear in the sites' terms. In a plain run the server has the updates and
computes the second phase itself, in the same round. Under secure aggregation each phase is a round of its
own with a sum of its own (`PROJECTION_IN_ROUNDS`): in odd rounds sites train A and B and send the change of
A, in even ones each fits its kept product to the A-bar that came (`fitted_B`) and sends the change of B.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.collected import CollectedUpdates, pairs_of
from fedtune.aggregation.linear import LinearAggregator
from fedtune.aggregation.lowrank import Matrix
from fedtune.models.adapter import FACTORS, Adapter, Factor
from fedtune.training.delta import Delta

__all__ = [
    "GREATEST_CONDITION",
    "PROJECTION",
    "PROJECTION_IN_ROUNDS",
    "ProjectedMean",
    "ProjectionAggregator",
    "fitted_B",
    "ill_conditioned",
    "in_rows_of",
]

GREATEST_CONDITION = 1e3
"""Largest ratio of the singular values of an A-bar that is fitted to under secure aggregation.

Written in the rows of A-bar, what a site's product has along a direction is multiplied by up to
``1 / sigma``, where sigma is what A-bar has along it. With all sigma within this ratio, no direction of a
product is enlarged over another by more than it, whatever A-bar a server has made. A seeded A of shape
(r, in) is near ``(1 + sqrt(r / in)) / (1 - sqrt(r / in))``, which is 1.1 for rank 16 of 4096.
"""


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

PROJECTION_IN_ROUNDS = LinearAggregator(
    name="projection",
    exact=False,
    label="averages A in odd rounds, and in even ones the B that fits the mean of the products best beside "
    "it; inexact by what the mean A cannot hold",
    schedule=(("A",), ("B",)),
)
"""The same in two rounds, each of them a mean of deltas."""


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


def fitted_B(trained: Mapping[str, np.ndarray[Any, Any]], received: Adapter) -> Delta:
    """Return by how much each B changes that a site's product is written in the rows of a mean A with.

    Guarantees:
        * float64 until it is rounded once, to the type of the received adapter.
        * The weighted mean of the sites' results, added to the received B, is the B of `ProjectedMean`, up
          to that rounding.

    Args:
        trained: The site's A_i (r, in) and B_i (out, r), as it trained them.
        received: The global adapter with the mean A, A-bar (r, in), and the B (out, r) from before.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name_A, name_B in pairs_of(received):
        inverse = np.linalg.pinv(received[name_A].astype(np.float64))
        B, A = trained[name_B].astype(np.float64), trained[name_A].astype(np.float64)
        change = in_rows_of(inverse, B, A) - received[name_B]
        tensors[name_B] = change.astype(received[name_B].dtype)
    return Delta(tensors=tensors)


def ill_conditioned(adapter: Adapter) -> dict[str, float]:
    """Return each A whose singular values are further apart than `GREATEST_CONDITION`, with their ratio.

    The ratio is infinite where a row of A (r, in) depends on the others, for r up to ``in``.
    """
    found = {}
    for name_A, _ in pairs_of(adapter):
        singular = np.linalg.svd(adapter[name_A].astype(np.float64), compute_uv=False)
        # Not least * bound < most, which an A of zeros would pass.
        if not singular[-1] * GREATEST_CONDITION >= singular[0] > 0:
            found[name_A] = float(singular[0] / singular[-1]) if singular[-1] > 0 else float("inf")
    return found
