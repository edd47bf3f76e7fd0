"""Which clients take part in a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedtune.data.seeds import derive_seed

__all__ = ["sample_clients"]


def sample_clients(
    names: Sequence[str], *, count: int | None, seed: int, round_number: int
) -> tuple[str, ...]:
    """Draw a round's cohort uniformly without replacement (McMahan et al. 2017, Algorithm 1).

    The draw depends on the seed and the round alone, so a resumed run asks the same clients.

    Args:
        names: All clients that are there; their order does not matter.
        count: How many to draw; None, or more than there are, takes all.
        seed: The run's seed.
        round_number: Round, from 1.

    Returns:
        The drawn names in sorted order.
    """
    everyone = sorted(names)
    if count is None or count >= len(everyone):
        return tuple(everyone)
    stream = np.random.Generator(np.random.PCG64(derive_seed(seed, "cohort", round_number)))
    chosen = stream.choice(len(everyone), size=count, replace=False)
    return tuple(everyone[index] for index in sorted(chosen))
