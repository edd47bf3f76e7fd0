"""Is the adapter that a round starts from one that the rounds before can have given?

A server that crafts the model can read single examples out of a sum: Boenisch et al. 2023 (EuroS&P, "When
the Curious Abandon Honesty"), Fowl et al. 2022 (ICLR, "Robbing the Fed"). All members can check that a
mean of updates, each clipped to a public bound, was added to the adapter that they saw before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.problems import problem

__all__ = ["check_later_adapter", "check_start_adapter", "differing_names"]

_FLOAT_SLACK: Final = 1e-6
"""Relative: some roundings of adapter entries to float32."""


def check_start_adapter(received: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    """Round 1: the adapter is bit for bit the seeded start (B = 0) that the site computes itself.

    Raises:
        SecureAggregationError: FT917 with every tensor that differs.
    """
    problems = differing_names(received, expected)
    problems += [
        problem("FT917", f"{name} is not the seeded start", where=name)
        for name in sorted(expected.keys() & received.keys())
        if not np.array_equal(received[name], expected[name])
    ]
    if problems:
        raise SecureAggregationError(problems)


def check_later_adapter(
    received: Mapping[str, NDArray[Any]],
    previous: Mapping[str, NDArray[Any]],
    *,
    bounds: Mapping[str, float],
    excess: float,
    server_step: float,
    rounds: int = 1,
) -> None:
    """Later rounds: no entry moved further than clip bound x server step since the adapter seen last.

    Args:
        received: The adapter that this round starts from.
        previous: The one that this site received last.
        bounds: Clip bound of each tensor that may have been trained since; others stay as they are.
        excess: Relative amount by which rounding to levels may exceed a bound: `Encoding.excess`.
        server_step: Declared factor on the mean update (the server's learning rate; 1 for plain averaging).
        rounds: Rounds between the two; more than 1 where the site sat some out.

    Raises:
        SecureAggregationError: FT917 with every tensor that moved too far or holds a NaN.
    """
    problems = differing_names(received, previous)
    for name in sorted(previous.keys() & received.keys()):
        allowed = rounds * abs(server_step) * bounds.get(name, 0.0) * (1 + excess)
        before = np.asarray(previous[name], dtype=np.float64)
        moved = np.abs(np.asarray(received[name], dtype=np.float64) - before)
        slack = _FLOAT_SLACK * (allowed + np.abs(before)) if allowed else 0.0
        if not np.all(moved <= allowed + slack):  # a NaN compares false
            furthest = float(np.max(moved))
            what = f"{name} moved by {furthest:.3g}, at most {allowed:.3g} can come of clipped updates"
            problems.append(problem("FT917", what, where=name))
    if problems:
        raise SecureAggregationError(problems)


def differing_names(
    received: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]
) -> list[Problem]:
    """Return no problem for an adapter of the expected names and shapes.

    Raises:
        SecureAggregationError: FT917 with every tensor that is missing, unknown or of another shape.
    """
    problems = [
        problem("FT917", f"{name} is missing or unexpected in the received adapter", where=name)
        for name in sorted(received.keys() ^ expected.keys())
    ]
    problems += [
        problem("FT917", f"{name} has shape {received[name].shape}, not {expected[name].shape}", where=name)
        for name in sorted(received.keys() & expected.keys())
        if received[name].shape != expected[name].shape
    ]
    if problems:
        raise SecureAggregationError(problems)
    return problems
