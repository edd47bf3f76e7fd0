"""How alike the changes are that sites' updates make to the products B A.

Every site of a round receives the same (B, A). With (B + dB, A + dA) trained, a layer's product changes by

    dM = (B + dB)(A + dA) - B A = dB (A + dA) + B dA = L R,    L = [dB, B],  R = [A + dA; dA]

and two changes have the inner product <L_i R_i, L_j R_j> = sum((L_i^T L_j) * (R_i R_j^T)) in the Frobenius
norm, so that no product is ever formed.

Products, not factors: the model sees the product alone. While B is still near zero a change of A does
nothing, yet AdamW moves its values as far as any, and as coordinates of a vector they would be noise as long
as the signal. Changes of A and of B, as of ``alternating``, can be compared as products, and as factors they
cannot. Where all sites change B alone, the two differ by the metric A A^T, which starts near a multiple of 1.

Legend: n changes, K_i inner size of one of them (r, or 2 r where both factors changed).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedtune.aggregation.lowrank import Matrix
from fedtune.models.adapter import Adapter

__all__ = ["cosines", "deviation_cosines", "product_gram"]

Changes = Mapping[str, np.ndarray[Any, np.dtype[Any]]]

NUMERICALLY_ZERO = 1e-12
"""Squared length, of vectors with a length of about 1, below which there is rounding and no direction."""


def product_gram(received: Adapter, changes: Sequence[Changes], pairs: Iterable[tuple[str, str]]) -> Matrix:
    """Return the inner products <dM_i, dM_j>, summed over layers: (n, n), symmetric, float64.

    Args:
        received: The adapter that all changes begin at.
        changes: By tensor; a tensor that one does not name did not change. Each names at least one of a pair.
        pairs: (name of A, name of B) of each layer (`fedtune.models.adapter.AdapterSpec.pairs`).
    """
    gram = np.zeros((len(changes), len(changes)))
    for name_A, name_B in pairs:
        terms = [_factors(received[name_A], received[name_B], each, name_A, name_B) for each in changes]
        left = np.hstack([L for L, _ in terms])
        right = np.vstack([R for _, R in terms])
        starts = np.cumsum([0, *(len(R) for _, R in terms[:-1])])
        blocks = (left.T @ left) * (right @ right.T)
        gram += np.add.reduceat(np.add.reduceat(blocks, starts, axis=0), starts, axis=1)
    symmetric: Matrix = (gram + gram.T) / 2
    return symmetric


def _factors(
    A: np.ndarray[Any, Any], B: np.ndarray[Any, Any], change: Changes, name_A: str, name_B: str
) -> tuple[Matrix, Matrix]:
    """Return L (out, K) and R (K, in) of one change of one layer."""
    A, B = A.astype(np.float64), B.astype(np.float64)
    lefts: list[Matrix] = []
    rights: list[Matrix] = []
    dA, dB = change.get(name_A), change.get(name_B)
    if dB is not None:
        lefts.append(dB.astype(np.float64))
        rights.append(A if dA is None else A + dA)
    if dA is not None:
        lefts.append(B)
        rights.append(dA.astype(np.float64))
    return np.hstack(lefts), np.vstack(rights)


def cosines(gram: Matrix) -> Matrix:
    """Return the cosines of vectors with these inner products; of a vector of zeros, 0."""
    lengths = np.sqrt(np.diag(gram))
    shares = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    found: Matrix = gram * np.outer(shares, shares)
    return found


def deviation_cosines(gram: Matrix) -> Matrix:
    """Return the cosines between what sets each vector apart from all: (n, n), ones on the diagonal.

    Vectors are brought to length 1, their plain mean is taken away, and what is left is compared. Early in
    training all updates share most of their direction, the format of the answers say, and their plain cosines
    are near 1 whatever the sites hold; Sattler et al. wait until the mean update has vanished, which takes
    more rounds than an adapter is trained for. Taking the mean direction away does it at once: of two groups
    the deviations point apart, as they do there. Lengths are taken away first, as they say how far a site
    is, or how noisy, and not where it goes.

    Args:
        gram: Inner products of n vectors.

    Returns:
        Cosines. Vectors that do not deviate have the cosine 1 with each other and 0 with the rest.
    """
    found = cosines(gram)
    deviations = found - found.mean(axis=0) - found.mean(axis=1)[:, None] + found.mean()
    none = np.diag(deviations) < NUMERICALLY_ZERO
    deviations[none] = deviations[:, none] = 0.0
    result = np.clip(cosines(deviations), -1.0, 1.0)
    result[np.ix_(none, none)] = 1.0
    np.fill_diagonal(result, 1.0)
    return result
