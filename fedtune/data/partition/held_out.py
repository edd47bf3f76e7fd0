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
    """A site's rows, in three disjoint parts that together are all of them.

    Attributes:
        train: Positions among the site's rows, ascending; int64.
        held_out: Positions among the site's rows, ascending; int64.
        validation: Positions among the site's rows, ascending; int64.
    """

    train: np.ndarray
    held_out: np.ndarray
    validation: np.ndarray


def split_held_out(n_rows: int, data: DataConfig, *, seed: int, site: str) -> HeldOutSplit:
    """Draw the rows of a site that are held out.

    Args:
        n_rows: Rows of the site.
        data: ``held_out_fraction`` of them, rounded down, and no more than ``held_out_max_rows``; then as
            many again for validation, and no more than ``validation_max_rows``.
        seed: The run's seed, unless ``data.held_out_seed`` is one.
        site: The site's name: with the seed it decides the draw, whatever other sites hold.
    """
    # 0.29 * 100 is 28.999... in floating point: the fraction is taken as it was written.
    share = int(n_rows * Fraction(repr(data.held_out_fraction)))
    held_out = min(share, data.held_out_max_rows)
    validation = min(held_out, data.validation_max_rows, n_rows - held_out)
    drawn = seed if data.held_out_seed is None else data.held_out_seed
    rng = np.random.Generator(np.random.PCG64(derive_seed(drawn, "held-out", site)))
    order = rng.permutation(n_rows).astype(np.int64)
    return HeldOutSplit(
        train=np.sort(order[held_out + validation :]),
        held_out=np.sort(order[:held_out]),
        validation=np.sort(order[held_out : held_out + validation]),
    )
