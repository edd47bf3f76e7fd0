"""A sum of sketches, and the adapter that is found in it.

With test matrices that everyone knows, Omega (in, k) and Psi (k, out), a site sends Y_i = B_i A_i Omega
(out, k) and Z_i = Psi B_i A_i (k, in): both are linear, of the same shape whatever the site's rank, and the
server needs their weighted sums Y and Z alone. From them (Tropp, Yurtsever, Udell and Cevher, "Practical
Sketching Algorithms for Low-Rank Matrix Approximation", SIAM J. Matrix Anal. Appl. 38(4), 2017, section 4
and 5.2)

    Y = Q T,    X = (Psi Q)^+ Z,    M = sum_i p_i B_i A_i ~ Q X

which is exact, with probability 1, where the rank of M is below k. The ranks of the sites add up: k of
about 2 n r is wide enough whatever they trained, so this is for small federations. The result is cut to the
adapter's rank as in `fedtune.aggregation.svd`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.collected import pairs_of
from fedtune.aggregation.linear import WeightedMean
from fedtune.aggregation.lowrank import Matrix
from fedtune.aggregation.svd import shortened
from fedtune.data.seeds import derive_seed
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta

__all__ = ["ROUNDING", "SketchAggregator", "SketchedMean", "recovered", "sketched", "sketches"]

ROUNDING = {np.dtype(np.float32): 1e-6, np.dtype(np.float64): 1e-12}
"""Share of the largest singular value below which a direction of a sum of sketches is their rounding."""


@dataclass(frozen=True, kw_only=True)
class SketchAggregator:
    """Trains A and B; sites send sketches of their product.

    Attributes:
        name: See `fedtune.aggregation.base.Aggregator`, as for the next two.
        exact: False: the mean of the products is cut to the adapter's rank.
        label: One line for reports.
        width: k, the rank of what is sent.
    """

    name: str = "sketch"
    exact: bool = False
    label: str = "best approximation of a sketched mean of the products at the adapter's rank; inexact"
    width: int

    def factors(self, round: int) -> tuple[Factor, ...]:
        if round < 1:
            raise ValueError(f"rounds count from 1, got round={round}")
        return FACTORS

    def start(self, global_adapter: Adapter) -> SketchedMean:
        return SketchedMean(global_adapter, self.width)


class SketchedMean:
    """A running weighted sum of sketches; memory does not grow with clients.

    A "delta" here is what `sketched` gives: Y under the name of B and Z under that of A, as an adapter of
    rank k.
    """

    def __init__(self, received: Adapter, width: int) -> None:
        self._received = received
        self._pairs = pairs_of(received)
        shapes: dict[str, tuple[int, ...]] = {}
        for name_A, name_B in self._pairs:
            shapes |= {name_A: (width, received[name_A].shape[1]), name_B: (received[name_B].shape[0], width)}
        self._sum = WeightedMean({name: np.zeros(shape) for name, shape in shapes.items()})

    def add(self, delta: Delta, weight: float) -> None:
        self._sum.add(delta, weight)

    def result(self) -> Adapter:
        mean, result = self._sum.result(), dict(self._received)
        for name_A, name_B in self._pairs:
            dtype = self._received[name_A].dtype
            left, right = recovered(mean[name_B], mean[name_A], name_A, ROUNDING[dtype])
            new_A, new_B = shortened(left, right, self._received[name_A])
            result[name_A], result[name_B] = new_A.astype(dtype), new_B.astype(dtype)
        return checked_result(result)


def sketched(trained: Mapping[str, np.ndarray[Any, Any]], spec: AdapterSpec, width: int) -> Delta:
    """Return a site's sketches Y and Z of each layer, as tensors of an adapter of rank ``width``.

    Args:
        trained: The site's adapter after training, of any rank.
        spec: Names and type.
        width: k.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name_A, name_B in spec.pairs:
        Y, Z = sketches(trained[name_B], trained[name_A], name_A, width)
        tensors[name_B], tensors[name_A] = Y.astype(spec.dtype), Z.astype(spec.dtype)
    return Delta(tensors={name: tensors[name] for name in spec.shapes})


def sketches(
    B: np.ndarray[Any, Any], A: np.ndarray[Any, Any], name_A: str, width: int
) -> tuple[Matrix, Matrix]:
    """Return Y = B A Omega (out, k) and Z = Psi B A (k, in), float64.

    Guarantee: as the columns of Omega and the rows of Psi have length 1, no entry of either is larger than
    the Frobenius norm of B A.

    Args:
        B: (out, r), of any rank r.
        A: (r, in).
        name_A: Name of the layer's A, which the test matrices are drawn by.
        width: k.
    """
    A, B = A.astype(np.float64), B.astype(np.float64)
    omega, psi = _test_matrix(name_A, "in", A.shape[1], width), _test_matrix(name_A, "out", B.shape[0], width)
    return B @ (A @ omega.T), (psi @ B) @ A


def recovered(
    Y: Matrix, Z: Matrix, name_A: str, rounding: float, *, most: int | None = None
) -> tuple[Matrix, Matrix]:
    """Return Q (out, m) and X (m, in) with M ~ Q X.

    Args:
        Y: M Omega (out, k).
        Z: Psi M (k, in).
        name_A: Name of the layer's A, which the test matrices are drawn by.
        rounding: Directions of Y below this share of the largest are left out.
        most: Directions at most; None for as many as there are.
    """
    width = Y.shape[1]
    vectors, singular, _ = np.linalg.svd(Y, full_matrices=False)
    kept = int(np.sum(singular > rounding * singular[0])) if singular[0] > 0 else 0
    if kept == width:
        # M may have more directions than k: the least-squares problem below wants twice as many rows as
        # columns.
        kept = max(1, width // 2)
    Q = vectors[:, : kept if most is None else min(kept, most)]
    psi = _test_matrix(name_A, "out", Y.shape[0], width)
    X, *_ = np.linalg.lstsq(psi @ Q, Z, rcond=None)
    return Q, X


@lru_cache(maxsize=256)
def _test_matrix(name: str, side: str, size: int, width: int) -> Matrix:
    """Return a matrix (width, size), the same on every machine: directions drawn evenly, of length 1."""
    stream = np.random.Generator(np.random.PCG64(derive_seed("sketch", name, side, width)))
    matrix = stream.standard_normal((width, size))
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    matrix.flags.writeable = False
    return matrix
