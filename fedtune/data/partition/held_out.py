"""The rows of a site that never train anything."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from fedtune.config.schema import DataConfig
from fedtune.data.seeds import derive_seed

__all__ = ["HeldOutSplit", "split_held_out"]


@dataclass(frozen=True, kw_only=True)
class HeldOutSplit:
    """A site's rows, in two disjoint parts that together are all of them.

    Attributes:
        train: Positions among the site's rows, ascending; int64.
        held_out: Positions among the site's rows, ascending; int64.
    """

    train: np.ndarray
    held_out: np.ndarray


def split_held_out(n_rows: int, data: DataConfig, *, seed: int, site: str) -> HeldOutSplit:
    """Draw the rows of a site that are held out.

    Args:
        n_rows: Rows of the site.
        data: ``held_out_fraction`` of them, rounded down, and no more than ``held_out_max_rows``.
        seed: The run's seed.
        site: The site's name: with the seed it decides the draw, whatever other sites hold.
    """
    # 0.29 * 100 is 28.999... in floating point: the fraction is taken as it was written.
    share = int(n_rows * Fraction(repr(data.held_out_fraction)))
    count = min(share, data.held_out_max_rows)
    rng = np.random.Generator(np.random.PCG64(derive_seed(seed, "held-out", site)))
    order = rng.permutation(n_rows).astype(np.int64)
    return HeldOutSplit(train=np.sort(order[count:]), held_out=np.sort(order[:count]))
