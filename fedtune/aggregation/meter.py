"""How far the averaged factors are from the average of the products.

Shapes: n clients; a layer has B (out, r) and A (r, in). Client i has the share p_i and the factors B_i, A_i,
which are the received ones plus its delta; the new global factors are B', A'. Bars are weighted means.

The error of a layer is E = sum_i p_i B_i A_i - B' A'. As B' and A' are nearly the means, the terms of this
difference almost cancel, and for float32 factors rounding would hide an error of 0. With D_i = B_i - B' and
F_i = A_i - A' it is, exactly,

    E = sum_i p_i D_i F_i  +  B' (A-bar - A')  +  (B-bar - B') A'

where nothing large is subtracted any more. This is one product L R of stacked factors, L (out, K) and
R (K, in) with K = (n + 2) r, so that

    ||E||_F^2 = trace(R^T L^T L R) = sum of the entries of (L^T L) * (R R^T)

and no (out, in) matrix is ever formed. For ``fedavg`` in exact arithmetic the last two terms vanish and E is
the clients' cross-covariance (the interference term of Sun et al., FFA-LoRA, ICLR 2024, section 3).
"""

from __future__ import annotations

from math import inf, sqrt
from typing import Any, TypeAlias

import numpy as np

from fedtune.aggregation.weighting import is_weight, problem_of_total, problem_of_weight
from fedtune.errors import UpdateError
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.training.delta import Delta

__all__ = ["ErrorMeter"]

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


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

    def result(self, new_global: Adapter) -> float:
        """Return ||sum_i p_i B_i A_i - B' A'||_F / ||sum_i p_i B_i A_i||_F over all layers together.

        Args:
            new_global: What the round's aggregation gave: B' and A'.

        Returns:
            The relative error; 0 where both norms are 0, infinity where only the denominator is.

        Raises:
            UpdateError: FT506, no client has a weight above 0.
        """
        total = sum(weight for _, weight in self._clients)
        if not 0 < total < inf:
            raise UpdateError(problem_of_total(len(self._clients), total))
        shares = [(delta, weight / total) for delta, weight in self._clients]
        squared_error = squared_mean = 0.0
        for name_A, name_B in self._pairs:
            layer = self._squared_norms(shares, name_A, name_B, new_global)
            squared_error += layer[0]
            squared_mean += layer[1]
        if squared_mean == 0:
            return inf if squared_error > 0 else 0.0
        return sqrt(squared_error / squared_mean)

    def _squared_norms(
        self, shares: list[tuple[Delta, float]], name_A: str, name_B: str, new_global: Adapter
    ) -> tuple[float, float]:
        """Return ||E||_F^2 and ||E + B' A'||_F^2 of one layer."""
        new_A, new_B = _float64(new_global[name_A]), _float64(new_global[name_B])
        moved_A, moved_B = new_A - self._received[name_A], new_B - self._received[name_B]
        mean_A, mean_B = np.zeros_like(new_A), np.zeros_like(new_B)  # of F_i and of D_i
        terms: list[tuple[Matrix, Matrix]] = []
        for delta, share in shares:
            # X_i - X' = delta_i - (X' - X): small numbers from small numbers.
            far_A, far_B = _change(delta, name_A) - moved_A, _change(delta, name_B) - moved_B
            mean_A += share * far_A
            mean_B += share * far_B
            terms.append((share * far_B, far_A))
        terms += [(new_B, mean_A), (mean_B, new_A)]
        # A frozen factor makes its terms zero: an exact method pays for one term, not for n + 2.
        terms = [(left, right) for left, right in terms if left.any() and right.any()]
        # Last, B' A' itself: all entries give the mean's norm, those without it the error's.
        terms.append((new_B, new_A))
        left, right = np.hstack([term[0] for term in terms]), np.vstack([term[1] for term in terms])
        gram = (left.T @ left) * (right @ right.T)
        errors = left.shape[1] - new_B.shape[1]
        # A squared norm that is zero can come out as -1e-40.
        return max(0.0, float(gram[:errors, :errors].sum())), max(0.0, float(gram.sum()))


def _float64(tensor: np.ndarray[Any, Any]) -> Matrix:
    return tensor.astype(np.float64)


def _change(delta: Delta, name: str) -> Matrix | float:
    return _float64(delta.tensors[name]) if name in delta.tensors else 0.0
