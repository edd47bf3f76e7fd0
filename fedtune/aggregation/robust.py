"""Means that some false updates cannot move far, for a server that sees each update.

A delta is one vector here: all tensors of the round, end to end, in float64; n of them, of which at most f
are false.

=================
==================================================================================================
``median``         of each entry. Yin et al., "Byzantine-Robust Distributed Learning", ICML 2018, Algorithm
1 option I ``trimmed_mean``   of each entry without its f largest and f smallest values. Yin et al., option
II; n > 2 f ``krum``           the one delta with the least sum of squared distances to its n - f - 2
nearest others. Blanchard et
                   al., "Machine Learning with Adversaries", NeurIPS 2017, section 4; n >= 2 f + 3
``multi_krum``     the mean of the n - f deltas of least such sums. The same, section 6 ``bulyan``         n
- 2 f times Krum, each time without those chosen before; then of each entry the mean of the
                   n - 4 f values nearest to their median. El Mhamdi et al., "The Hidden Vulnerability of
                   Distributed Learning in Byzantium", ICML 2018, section 4; n >= 4 f + 3
``norm_bound``     the weighted mean of the deltas, longer ones scaled down to a bound. Sun et al., "Can You
Really
                   Backdoor Federated Learning?", 2019, arXiv:1911.07963, section 4
``cosine``         the weighted mean of the deltas whose cosine with the entrywise median is above a
threshold; ours,
                   after the cosine tests of FLTrust (Cao et al., NDSS 2021), which needs data at the server
=================
==================================================================================================

All but the last two ignore weights, as their papers do: a weight is what a false client says of itself. Of
Flower 1.41 two functions are used, ``trim_mean`` and ``aggregate_n_closest_weights``. Its Krum subtracts
squared norms in float32, which loses the distances between near deltas and can rank another one before the
delta itself; its Bulyan chooses by one pass of Multi-Krum instead of n - 2 f times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
from flwr.serverapp.strategy.fedtrimmedavg import trim_mean

from fedtune.aggregation.checks import check_update
from fedtune.aggregation.lowrank import Matrix
from fedtune.aggregation.weighting import normalised
from fedtune.config.methods import least_updates
from fedtune.config.schema import DefenceConfig
from fedtune.errors import Problem, UpdateError
from fedtune.models.adapter import Adapter
from fedtune.training.delta import Delta

__all__ = ["RobustMean", "bulyan", "cosine_filter", "krum_order", "norm_bounded"]


class RobustMean:
    """Keeps the deltas of a round and takes a robust mean of them.

    Memory grows with the number of clients: a rule compares each delta with all others.
    """

    def __init__(self, received: Adapter, defence: DefenceConfig) -> None:
        self._received, self._defence = received, defence
        self._deltas: list[Delta] = []
        self._weights: list[float] = []

    def add(self, delta: Delta, weight: float) -> None:
        """As `fedtune.aggregation.base.Accumulator.add`."""
        names = self._deltas[0].tensors.keys() if self._deltas else delta.tensors.keys()
        check_update(delta, weight, received=self._received, names=names, number=len(self._deltas) + 1)
        self._deltas.append(delta)
        self._weights.append(weight)

    def mean_delta(self) -> dict[str, Matrix]:
        """Return the robust mean of each tensor, float64.

        Raises:
            UpdateError: FT506, the weights sum to zero; FT510, there are fewer updates than the rule needs.
        """
        count, false = len(self._deltas), self._defence.byzantine
        needed = least_updates(self._defence.name, false)
        if count < needed:
            raise UpdateError(
                Problem(
                    code="FT510",
                    what=f"{self._defence.name} with defence.byzantine={false} needs {needed} updates, "
                    f"{count} came",
                    where="the aggregation of this round",
                    fix="raise federation.min_replies, or lower defence.byzantine, or choose defence=median",
                )
            )
        shares = list(normalised({str(i): weight for i, weight in enumerate(self._weights)}).values())
        names = list(self._deltas[0].tensors)
        rows = np.stack([np.concatenate([_flat(delta, name) for name in names]) for delta in self._deltas])
        flat, mean, start = _RULES[self._defence.name](rows, shares, self._defence), dict[str, Matrix](), 0
        for name in names:
            shape = self._received[name].shape
            size = int(np.prod(shape))
            mean[name] = flat[start : start + size].reshape(shape)
            start += size
        return mean


def krum_order(rows: Matrix, false: int) -> list[int]:
    """Return the rows of ``rows`` (n, d) by Krum's score, the least first.

    Two rows that are each other's nearest have the same score where n - f - 2 is 1: then the sum of the
    distances to all rows decides, and not who came first.
    """
    count = len(rows)
    # The differences themselves: squared norms would cancel. An infinite distance keeps a row from itself.
    distances = np.full((count, count), np.inf)
    for i in range(count):
        for j in range(i):
            difference = rows[i] - rows[j]
            distances[i, j] = distances[j, i] = difference @ difference
    ordered = np.sort(distances, axis=1)
    scores, totals = (ordered[:, :many].sum(axis=1) for many in (max(1, count - false - 2), count - 1))
    return [int(i) for i in np.lexsort((totals, scores))]


def bulyan(rows: Matrix, false: int) -> Matrix:
    """Return Bulyan's mean (d,) of ``rows`` (n, d)."""
    remaining, chosen = list(range(len(rows))), list[int]()
    for _ in range(len(rows) - 2 * false):
        best = remaining[krum_order(rows[remaining], false)[0]] if len(remaining) > 1 else remaining[0]
        chosen.append(best)
        remaining.remove(best)
    picked = rows[chosen]
    [mean] = aggregate_n_closest_weights(
        [np.median(picked, axis=0)], [[row] for row in picked], len(chosen) - 2 * false
    )
    return np.asarray(mean, dtype=np.float64)


def norm_bounded(rows: Matrix, shares: Sequence[float], bound: float | None) -> Matrix:
    """Return the weighted mean of ``rows``, each no longer than a bound; None takes the median length."""
    lengths = np.linalg.norm(rows, axis=1)
    limit = float(np.median(lengths)) if bound is None else bound
    scales = np.minimum(1.0, limit / np.maximum(lengths, np.finfo(np.float64).tiny))
    return _weighted(rows * scales[:, None], shares)


def cosine_filter(rows: Matrix, shares: Sequence[float], least: float) -> Matrix:
    """Return the weighted mean of the rows whose cosine with the entrywise median is above ``least``.

    Where none is, or those that are weigh nothing, it is the median itself.
    """
    median = np.median(rows, axis=0)
    lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(median)
    cosines = np.divide(rows @ median, lengths, out=np.full(len(rows), -1.0), where=lengths > 0)
    kept = [float(share) if cosine > least else 0.0 for share, cosine in zip(shares, cosines, strict=True)]
    total = sum(kept)
    return _weighted(rows, [share / total for share in kept]) if total > 0 else np.asarray(median)


def _multi_krum(rows: Matrix, _: Sequence[float], defence: DefenceConfig) -> Matrix:
    chosen = krum_order(rows, defence.byzantine)[: len(rows) - defence.byzantine]
    return np.asarray(rows[sorted(chosen)].mean(axis=0))


def _trimmed(rows: Matrix, _: Sequence[float], defence: DefenceConfig) -> Matrix:
    # The function rounds down: a quarter of a row more than f of n is f, whatever the division rounds to.
    return np.asarray(trim_mean(rows, (defence.byzantine + 0.25) / len(rows)))


_RULES: dict[str, Callable[[Matrix, Sequence[float], DefenceConfig], Matrix]] = {
    "median": lambda rows, _, __: np.asarray(np.median(rows, axis=0)),
    "trimmed_mean": _trimmed,
    "krum": lambda rows, _, defence: rows[krum_order(rows, defence.byzantine)[0]],
    "multi_krum": _multi_krum,
    "bulyan": lambda rows, _, defence: bulyan(rows, defence.byzantine),
    "norm_bound": lambda rows, shares, defence: norm_bounded(rows, shares, defence.norm_bound),
    "cosine": lambda rows, shares, defence: cosine_filter(rows, shares, defence.min_cosine),
}


def _weighted(rows: Matrix, shares: Sequence[float]) -> Matrix:
    return np.asarray(np.asarray(shares) @ rows)


def _flat(delta: Delta, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return delta.tensors[name].astype(np.float64).ravel()
