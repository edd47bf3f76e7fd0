"""What every accumulator asks of the deltas that it is fed, and of the adapter that it gives."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from fedtune.aggregation.weighting import is_weight, problem_of_weight
from fedtune.errors import Problem, UpdateError
from fedtune.models.adapter import Adapter
from fedtune.training.delta import Delta
from fedtune.updates.problems import capped, not_finite, shown

__all__ = ["check_update", "checked_result"]


def check_update(
    delta: Delta, weight: float, *, received: Adapter, names: Collection[str], number: int
) -> None:
    """Refuse a delta that does not belong to the round; nothing is broadcast.

    Args:
        delta: One client's delta.
        weight: Its weight.
        received: The adapter that every client of the round received.
        names: Tensors of the deltas before this one; empty for the first.
        number: Which delta of the round this is, from 1.

    Raises:
        UpdateError: FT506 and FT507, as of `fedtune.aggregation.base.Accumulator.add`.
    """
    problems = capped(_problems(delta, weight, received, names, number))
    if problems:
        raise UpdateError(problems)


def checked_result(adapter: Adapter) -> Adapter:
    """Return the adapter as it is.

    Raises:
        UpdateError: FT508 for each tensor with values that are not finite.
    """
    problems = capped(_problems_of_result(adapter))
    if problems:
        raise UpdateError(problems)
    return adapter


def _problems(
    delta: Delta, weight: float, received: Adapter, names: Collection[str], number: int
) -> Iterator[Problem]:
    where = f"delta {number} of the round, in the order of the clients' names"
    if not is_weight(weight):
        yield problem_of_weight(where, weight)
    if not delta.tensors:
        yield _differs("it holds no tensors", where)
    if number > 1 and delta.tensors.keys() != frozenset(names):
        only_one = sorted(delta.tensors.keys() ^ frozenset(names))
        yield _differs(
            f"{len(only_one):,} tensors are not in both this delta and the ones before it, the first is "
            f"{shown(only_one[0])}",
            where,
        )
    for name, tensor in delta.tensors.items():
        if name not in received:
            yield _differs(f"the adapter has no tensor {shown(name)}", where)
        elif tensor.shape != received[name].shape:
            yield _differs(
                f"tensor {shown(name)} has shape {tensor.shape}, the adapter's is {received[name].shape}",
                where,
            )


def _differs(what: str, where: str) -> Problem:
    return Problem(
        code="FT507",
        what=what,
        where=where,
        fix="every client of a round trains the same factors of the same adapter: compare their settings",
    )


def _problems_of_result(adapter: Mapping[str, np.ndarray[Any, Any]]) -> Iterator[Problem]:
    for name, tensor in adapter.items():
        problem = not_finite(name, tensor, "the aggregated adapter")
        if problem is not None:
            yield Problem(
                code="FT508",
                what=problem.what,
                where=problem.where,
                fix="lower training.learning_rate: the clients' deltas overflow the adapter's type",
            )
