"""The walk of a client through its own rows: stateless, shuffled, without repetition.

The walk is an endless concatenation of seeded permutations, one for each pass over the rows (an *epoch*),
cut into steps of equal size. Where it stands is one integer, so a client that trains in every third round,
or whose process was killed, goes on exactly where it stopped, and no generator has to be kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from math import gcd
from typing import Any, TypeAlias

import numpy as np

from fedtune.data.seeds import derive_seed
from fedtune.errors import Problem, TrainingError

__all__ = ["Walk", "examples_for_round"]

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """The rows of one round.

    Attributes:
        steps: For each optimizer step, the indices of its rows (int64, all different).
        end: Where the next round starts: the steps taken so far.
    """

    steps: tuple[Rows, ...]
    end: int


def examples_for_round(n: int, *, start: int, count_per_step: int, steps: int, seed: int, site: str) -> Walk:
    """Choose the rows of a client's next steps.

    Guarantees:
        * No row comes a second time before all have come once: rows ``e * n .. (e + 1) * n - 1`` of the
          walk are a permutation of all rows, for every epoch ``e``, however the walk is cut into rounds.
        * A step never holds the same row twice, not even where it spans two epochs.
        * Stateless: two rounds of ``s`` steps are one round of ``2 s`` steps.

    Args:
        n: Rows that the client trains on.
        start: Steps taken before this round: 0, or the `Walk.end` of the round before.
        count_per_step: Rows in a step; a client with fewer takes all of its rows in each step.
        steps: Steps in the round.
        seed: Seed of the run.
        site: Name of the client; two clients walk independently.

    Returns:
        The steps, each of ``min(count_per_step, n)`` rows, and the new cursor.

    Raises:
        TrainingError: FT401, the client has no rows.
        ValueError: A negative ``start`` or ``steps``, or a ``count_per_step`` below 1.
    """
    if start < 0 or steps < 0 or count_per_step < 1:
        raise ValueError(
            f"a walk needs start >= 0, steps >= 0, count_per_step >= 1; "
            f"got {start=}, {steps=}, {count_per_step=}"
        )
    if n < 1:
        raise TrainingError(
            Problem(
                code="FT401",
                what=f"site {site!r} has {n} rows to train on",
                where=f"site {site!r}, after its held-out rows were set aside",
                fix="give the site rows, lower data.held_out_fraction, or leave it out of the federation "
                "(partition.values, or a larger partition.min_examples)",
            )
        )
    size = min(count_per_step, n)
    first_epoch, offset = divmod(start * size, n)
    rows = islice(_rows_from(n, size, first_epoch, seed, site), offset, offset + steps * size)
    flat = np.fromiter(rows, dtype=np.int64, count=steps * size)
    return Walk(steps=tuple(flat.reshape(steps, size)), end=start + steps)


def _rows_from(n: int, size: int, epoch: int, seed: int, site: str) -> Iterator[int]:
    """Yield the rows of the walk from the beginning of an epoch on, without end.

    A step that spans two epochs takes the last rows of one and the first of the next, and these must
    differ: the next epoch's order then depends on the one before it. The chain is short. It starts anew at
    every epoch that begins with a step of its own (each ``size / gcd(size, n)``-th), and where ``n`` is at
    least ``3 * size`` the rows that are moved never come from an epoch's last ``size - 1`` places, so that
    the epoch before is needed only as it was drawn.
    """
    period = size // gcd(size, n)
    known = epoch - epoch % period
    if n >= 3 * size:
        known = max(known, epoch - 1)
    order = _permutation(n, known, seed, site)
    while True:
        if known >= epoch:
            yield from order.tolist()
        known += 1
        taken = known * n % size  # of the step that spans the two epochs, from the epoch before
        tail = order[n - taken :]
        order = _permutation(n, known, seed, site)
        if taken:
            _keep_apart(order, tail, size - taken)


def _permutation(n: int, epoch: int, seed: int, site: str) -> Rows:
    stream = np.random.Generator(np.random.PCG64(derive_seed(seed, "walk", site, epoch)))
    return stream.permutation(n)


def _keep_apart(order: Rows, tail: Rows, head: int) -> None:
    """Exchange, in place, the first ``head`` rows that are in ``tail`` for the next rows that are not.

    There are enough: of ``n - head`` later rows at most ``len(tail) - (rows to exchange)`` are in ``tail``,
    and ``head + len(tail) <= n``.
    """
    in_tail = np.isin(order, tail)
    repeated = np.flatnonzero(in_tail[:head])
    free = head + np.flatnonzero(~in_tail[head:])[: len(repeated)]
    order[repeated], order[free] = order[free], order[repeated]
