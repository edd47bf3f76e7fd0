"""Which clients take part in a round, and which are evaluated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from fedtune.data.seeds import derive_seed

__all__ = ["evaluated_clients", "sample_clients"]


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


def evaluated_clients(names: Iterable[str], *, count: int | None, seed: int) -> list[str]:
    """Draw the clients whose held-out rows judge the run: a uniform sample, the same in every round.

    Each client has a number of its own, drawn from the seed and its name, and those with the smallest are
    taken: where one comes or goes, at most one other leaves the sample or enters it.

    Args:
        names: All clients that are there.
        count: How many to draw; None, or more than there are, takes all.
        seed: The run's seed.

    Returns:
        The drawn names in sorted order.
    """
    everyone = sorted(names)
    if count is None or count >= len(everyone):
        return everyone
    return sorted(sorted(everyone, key=lambda name: derive_seed(seed, "evaluation", name))[:count])
