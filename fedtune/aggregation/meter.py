"""How far the averaged factors are from the average of the products.

Shapes: n clients; a layer has B (out, r) and A (r, in). Client i has the share p_i and the factors B_i, A_i,
which are the received ones plus its delta; the new global factors are B', A'. Bars are weighted means.

The error of a layer is E = sum_i p_i B_i A_i - B' A'. As B' and A' are nearly the means, the terms of this
difference almost cancel, and for float32 factors rounding would hide an error of 0. With any client n as the
reference it is, exactly,

    E = sum_{i != n} p_i (B_i - B') (A_i - A_n)  +  (B-bar - B') A_n  +  B' (A-bar - A')

(multiply out, with sum_i p_i = 1), where nothing large is subtracted any more: each difference of factors is
taken between deltas. This is one product L R of stacked factors, L (out, K) and R (K, in), K = (n + 1) r, so

    ||E||_F^2 = trace(R^T L^T L R) = sum of the entries of (L^T L) * (R R^T)

and no (out, in) matrix is ever formed. A side-car (`fedtune.aggregation.carrying`) before and after the
round adds two terms, L R and -L' R', to the stack. The mean of the products is the same L times R with
A-bar in the place of A-bar - A'. For ``fedavg`` in exact arithmetic the last two terms vanish, and E is the
cross-covariance of the clients' factors, sum_i p_i (B_i - B-bar) (A_i - A-bar): what separate averaging
loses (Sun et al., FFA-LoRA, ICLR 2024, on the discordance of local training and averaging).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, TypeAlias

import numpy as np

from fedtune.aggregation.weighting import is_weight, problem_of_total, problem_of_weight
from fedtune.errors import UpdateError
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.training.delta import Delta

__all__ = ["ErrorMeter"]

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, kw_only=True)
class _Terms:
    error: list[tuple[Matrix, Matrix]]
    mean: list[tuple[Matrix, Matrix]]


class ErrorMeter:
    """Measures one round; it is fed beside the accumulator, with the same deltas and weights.

    Guarantees:
        * All arithmetic is float64. The result of an exact method in float32 is at the level of float32's
          rounding of the new factors (about 1e-7), not of the products.
        * The clients' deltas are kept, not copied, until `result`: memory grows with clients, so it is
          meant for simulations and can be switched off (``aggregation.error_meter=false``).

    The scaling alpha / rank is the same in all layers and cancels in the ratio.
    """

    def __init__(self, spec: AdapterSpec, global_adapter: Adapter) -> None:
        """Begin a round.

        Args:
            spec: Names of the adapter's tensors.
            global_adapter: What every client of the round received; not modified.
        """
        self._pairs = spec.pairs
        self._received = global_adapter
        self._clients: list[tuple[Delta, float]] = []

    def add(self, delta: Delta, weight: float) -> None:
        """Take one client into account; arguments as for `fedtune.aggregation.base.Accumulator.add`.

        Raises:
            UpdateError: FT506, a weight that is negative or not a number.
        """
        if not is_weight(weight):
            raise UpdateError(
                problem_of_weight(f"client {len(self._clients) + 1} of the error meter", weight)
            )
        if weight > 0:
            self._clients.append((delta, weight))

    def result(
        self, new_global: Adapter, side_car: Adapter | None = None, new_side_car: Adapter | None = None
    ) -> float:
        """Return ||sum_i p_i B_i A_i - B' A'||_F / ||sum_i p_i B_i A_i||_F over all layers together.

        Args:
            new_global: What the round's aggregation gave: B' and A'.
            side_car: What all clients had beside their adapters: L R is added to each of their products.
            new_side_car: What stands beside the new adapter.

        Returns:
            The relative error; 0 where both norms are 0, infinity where only the denominator is.

        Raises:
            UpdateError: FT506, no client has a weight above 0.
        """
        total = sum(weight for _, weight in self._clients)
        if not 0 < total < inf:
            raise UpdateError(problem_of_total(len(self._clients), total))
        deltas = [delta for delta, _ in self._clients]
        shares = np.array([weight / total for _, weight in self._clients])
        squared_error = squared_mean = 0.0
        for name_A, name_B in self._pairs:
            terms = self._terms(deltas, shares, name_A, name_B, new_global)
            before = [(_float64(side_car[name_B]), _float64(side_car[name_A]))] if side_car else []
            after = (
                [(_float64(new_side_car[name_B]), -_float64(new_side_car[name_A]))] if new_side_car else []
            )
            layer = _squared_norm([*terms.error, *before, *after]), _squared_norm([*terms.mean, *before])
            squared_error += layer[0]
            squared_mean += layer[1]
        if squared_mean == 0:
            return inf if squared_error > 0 else 0.0
        return sqrt(squared_error / squared_mean)

    def _terms(
        self, deltas: list[Delta], shares: Matrix, name_A: str, name_B: str, new_global: Adapter
    ) -> _Terms:
        """Return E and the mean of the products of one layer, as sums of left @ right."""
        new_A, new_B = _float64(new_global[name_A]), _float64(new_global[name_B])
        moved_A, moved_B = new_A - self._received[name_A], new_B - self._received[name_B]
        changes_A = [_change(delta, name_A, new_A) for delta in deltas]
        changes_B = [_change(delta, name_B, new_B) for delta in deltas]
        lost_A = changes_A[-1] - moved_A  # becomes A-bar - A'
        lost_B = shares[-1] * (changes_B[-1] - moved_B)  # becomes B-bar - B'
        lefts: list[Matrix] = []
        rights: list[Matrix] = []
        for change_A, change_B, share in zip(changes_A[:-1], changes_B[:-1], shares[:-1], strict=True):
            lefts.append(share * (change_B - moved_B))
            rights.append(np.subtract(change_A, changes_A[-1], dtype=np.float64))
            lost_B += lefts[-1]
            lost_A += share * rights[-1]
        if not any(np.any(right) for right in rights) or not any(np.any(left) for left in lefts):
            lefts, rights = [], []  # one factor is frozen: an exact method does not pay for these terms
        last_A = self._received[name_A] + changes_A[-1].astype(np.float64)
        spread = list(zip(lefts, rights, strict=True))
        return _Terms(
            error=[*spread, (lost_B, last_A), (new_B, lost_A)],
            mean=[*spread, (lost_B, last_A), (new_B, new_A + lost_A)],
        )


def _squared_norm(terms: list[tuple[Matrix, Matrix]]) -> float:
    """Return ||sum of left @ right||_F^2."""
    left, right = np.hstack([each for each, _ in terms]), np.vstack([each for _, each in terms])
    # A squared norm that is zero can come out as -1e-40.
    return max(0.0, float(np.vdot(left.T @ left, right @ right.T)))


def _float64(tensor: np.ndarray[Any, Any]) -> Matrix:
    return tensor.astype(np.float64)


def _change(delta: Delta, name: str, like: Matrix) -> np.ndarray[Any, Any]:
    """Return a client's change of a tensor; that of a frozen one is zero, and takes no memory."""
    return delta.tensors.get(name, np.broadcast_to(np.float64(0.0), like.shape))
