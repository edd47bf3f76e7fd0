"""Is the adapter that a round starts from one that sums of clipped changes of its *products* can have given?

Where the factors are in other coordinates every round (``aggregation=sketch``), nothing can be said of how
far a value moved. But the product of each layer moves by at most 2 rho a round (the bound is derived in
`fedtune.aggregation.sketched_change`), and the factors of a product are not the server's to choose. They are

    B' = U S^(1/2),    A' = S^(1/2) V^T    of its singular value decomposition U S V^T,

in which the columns of B' are orthogonal, and so are the rows of A', and each column is as long as its row.
Conversely, factors with these three properties are those of the decomposition: their product has the
singular vectors b_k / |b_k| and a_k / |a_k| and the singular values |b_k| |a_k|. So with the product they are
given up to signs and the order of the terms, and where singular values are equal up to a rotation that a
decomposition may give as well. A row of A with no column of B beside it, which the product does not show,
has to be the one that was there before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedtune.aggregation.lowrank import norm
from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.broadcast import differing_names
from fedtune.secagg.problems import problem

__all__ = ["check_later_product"]

Matrix = NDArray[np.float64]

_FLOAT_SLACK: Final = 1e-6
"""Relative: some roundings of adapter entries to float32."""

_BALANCE: Final = 1e-5
"""Relative to the lengths of the two columns: roundings of their entries move no scalar product further."""


def check_later_product(
    received: Mapping[str, NDArray[Any]],
    previous: Mapping[str, NDArray[Any]],
    bounds: Mapping[tuple[str, str], float],
    *,
    rounds: int = 1,
) -> None:
    """Later rounds: no product moved further than 2 rho a round, and its factors are the balanced ones.

    Guarantees:
        * No adapter of `fedtune.aggregation.sketched_change.SketchedChange` is refused, whatever the sums.
        * A layer that is bit for bit as before is accepted, as after a burnt round.
        * A NaN or an infinity anywhere in another layer is refused.
        * It bounds how far a product moves as a whole, and not each value: a single one may move by more
          than where values are clipped.

    Args:
        received: The adapter that this round starts from.
        previous: The one that this site received last.
        bounds: rho of each layer, by the names of its A and B (`product_bounds`).
        rounds: Rounds between the two; more than 1 where the site sat some out.

    Raises:
        SecureAggregationError: FT917 with every layer that moved too far or has other factors.
    """
    problems = differing_names(received, previous)
    for (name_A, name_B), bound in bounds.items():
        same = all(np.array_equal(received[name], previous[name]) for name in (name_A, name_B))
        if same:
            continue
        new_A, new_B, old_A, old_B = (
            np.asarray(tensors[name], dtype=np.float64)
            for tensors in (received, previous)
            for name in (name_A, name_B)
        )
        if not (np.isfinite(new_A).all() and np.isfinite(new_B).all()):
            problems.append(problem("FT917", f"{name_A} or its B holds a NaN or an infinity", where=name_A))
            continue
        problems += _moved_too_far(name_B, (new_B, new_A), (old_B, old_A), 2 * rounds * bound)
        problems += _not_balanced(name_A, new_B, new_A, old_A)
    if problems:
        raise SecureAggregationError(problems)


def _moved_too_far(
    name: str, new: tuple[Matrix, Matrix], old: tuple[Matrix, Matrix], allowed: float
) -> list[Problem]:
    (new_B, new_A), (old_B, old_A) = new, old
    moved = norm(np.hstack([new_B, -old_B]), np.vstack([new_A, old_A]))
    sizes = sum(float(np.linalg.norm(B) * np.linalg.norm(A)) for B, A in (new, old))
    if moved <= allowed + _FLOAT_SLACK * (allowed + sizes):
        return []
    what = f"the product of {name} moved by {moved:.3g}, at most {allowed:.3g} can come of clipped updates"
    return [problem("FT917", what, where=name)]


def _not_balanced(name: str, B: Matrix, A: Matrix, previous_A: Matrix) -> list[Problem]:
    gram_B, gram_A = B.T @ B, A @ A.T
    long_B, long_A = np.sqrt(np.diag(gram_B)), np.sqrt(np.diag(gram_A))
    unused = long_B == 0
    if not all(np.array_equal(A[row], previous_A[row]) for row in np.flatnonzero(unused)):
        what = f"{name} has new rows beside columns of zeros, which no product has given"
        return [problem("FT917", what, where=name)]
    used = np.flatnonzero(~unused)
    lengths = np.abs(long_B[used] - long_A[used]) <= _BALANCE * long_A[used]
    angles = []
    for gram, long in ((gram_B, long_B), (gram_A, long_A)):
        beside = gram[np.ix_(used, used)] - np.diag(np.diag(gram)[used])
        angles.append(np.abs(beside) <= _BALANCE * np.outer(long[used], long[used]))
    if lengths.all() and all(angle.all() for angle in angles):
        return []
    what = f"the factors of {name} and its B are not the balanced ones of their product"
    return [problem("FT917", what, where=name)]
