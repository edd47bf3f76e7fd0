"""Products of stacked factors, shortened without ever being formed.

Shapes: L is (out, K), R is (K, in), their product M = L R is (out, in). With reduced QR decompositions
L = Q_L T_L and R^T = Q_R T_R the small matrix T_L T_R^T has the singular values of M, and

    M = (Q_L U) diag(S) (V^T Q_R^T),    U diag(S) V^T = T_L T_R^T

(Golub and Van Loan, "Matrix Computations", 4th ed., 2013, sections 5.4.2 and 8.6.3). With K columns this
takes O((out + in) K^2 + K^3) operations and (out + in) K numbers; the dense decomposition takes O(out in^2)
and out in. The first r terms are the best approximation of rank r in the Frobenius norm (Eckart and Young,
1936).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Matrix", "SingularTerms", "norm", "singular_terms", "stacked"]

Matrix: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

NUMERICALLY_ZERO = 1e-12
"""Singular values below this share of the largest are rounding: factors are summed in float64."""


@dataclass(frozen=True, kw_only=True)
class SingularTerms:
    """M = left diag(singular) right, largest terms first, m = min(out, in, K) of them.

    Guarantees:
        * ``left`` (out, m) has orthonormal columns, ``right`` (m, in) orthonormal rows, up to rounding.
        * The largest entry of each left column is positive: signs do not depend on the linear-algebra
          library.
    """

    left: Matrix
    singular: Matrix
    right: Matrix

    @property
    def rank(self) -> int:
        """How many terms are more than rounding."""
        if not self.singular.size or self.singular[0] == 0:
            return 0
        return int(np.sum(self.singular > NUMERICALLY_ZERO * self.singular[0]))

    def balanced(self, rank: int) -> tuple[Matrix, Matrix]:
        """Return B (out, rank) and A (rank, in) with B A the best approximation of that rank.

        Each gets the square root of the singular values, so that both have the same norm. Terms that M does
        not have are zero.
        """
        kept = min(rank, self.rank)
        root = np.sqrt(self.singular[:kept])
        B = np.zeros((self.left.shape[0], rank))
        A = np.zeros((rank, self.right.shape[1]))
        B[:, :kept] = self.left[:, :kept] * root
        A[:kept] = root[:, None] * self.right[:kept]
        return B, A


def stacked(terms: Iterable[tuple[float, Matrix, Matrix]]) -> tuple[Matrix, Matrix]:
    """Return L and R with L R = sum_i c_i B_i A_i.

    Args:
        terms: (c_i, B_i, A_i), such as the share of a client times its scale alpha_i / r_i, its B (out,
            r_i) and
            its A (r_i, in); ranks may differ. At least one.
    """
    lefts, rights = [], []
    for factor, B, A in terms:
        lefts.append(np.multiply(B, factor, dtype=np.float64))
        rights.append(A.astype(np.float64))
    return np.hstack(lefts), np.vstack(rights)


def singular_terms(left: Matrix, right: Matrix) -> SingularTerms:
    """Decompose the product of ``left`` (out, K) and ``right`` (K, in), which is not formed.

    Raises:
        ValueError: The inner sizes differ.
    """
    if left.shape[1] != right.shape[0]:
        raise ValueError(f"the factors do not fit: {left.shape} and {right.shape}")
    q_left, t_left = np.linalg.qr(left)
    q_right, t_right = np.linalg.qr(right.T)
    u, singular, vt = np.linalg.svd(t_left @ t_right.T, full_matrices=False)
    left_vectors, right_vectors = q_left @ u, vt @ q_right.T
    largest = np.abs(left_vectors).argmax(axis=0)
    signs = np.where(left_vectors[largest, np.arange(singular.size)] < 0, -1.0, 1.0)
    return SingularTerms(left=left_vectors * signs, singular=singular, right=signs[:, None] * right_vectors)


def norm(left: Matrix, right: Matrix) -> float:
    """Return the Frobenius norm of ``left @ right``, (out, K) and (K, in), which is not formed."""
    (_, t_left), (_, t_right) = np.linalg.qr(left), np.linalg.qr(right.T)
    return float(np.linalg.norm(t_left @ t_right.T))
