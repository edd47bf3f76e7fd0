"""How much each client's delta counts."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite
from typing import Literal

from fedtune.errors import Problem, UpdateError

__all__ = ["Weighting", "client_weight", "normalised"]

Weighting = Literal["examples", "tokens", "uniform"]


def client_weight(weighting: Weighting, *, examples: int, response_tokens: int) -> float:
    """Return a client's weight in the sum, not normalised.

    Args:
        weighting: ``aggregation.weighting``. By examples, each example counts alike (McMahan et al., 2017,
            algorithm 1); by tokens, each response token does, which is what the loss averages over; uniform,
            each site does.
        examples: Examples trained on in this round.
        response_tokens: Response tokens trained on in this round.
    """
    return {"examples": float(examples), "tokens": float(response_tokens), "uniform": 1.0}[weighting]


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Divide weights by their sum.

    Args:
        weights: Client to weight, each at least 0.

    Returns:
        The same clients in the same order; the shares sum to 1 up to rounding.

    Raises:
        UpdateError: FT506 for each weight that is negative or not finite, or if the sum is zero.
    """
    problems = [
        problem_of_weight(f"client {client}", weight)
        for client, weight in weights.items()
        if not is_weight(weight)
    ]
    if problems:
        raise UpdateError(problems)
    total = sum(weights.values())
    if not 0 < total < inf:
        raise UpdateError(problem_of_total(len(weights), total))
    return {client: weight / total for client, weight in weights.items()}


def is_weight(weight: float) -> bool:
    """Return whether a number can weigh a client."""
    return isfinite(weight) and weight >= 0


def problem_of_weight(where: str, weight: float) -> Problem:
    """Return FT506 for a weight that is none."""
    return Problem(
        code="FT506",
        what=f"a client's weight must be a number of at least 0, got {weight!r}",
        where=where,
        fix="weigh by what the client reports, or set aggregation.weighting=uniform",
    )


def problem_of_total(clients: int, total: float) -> Problem:
    """Return FT506 for weights whose sum cannot be divided by."""
    return Problem(
        code="FT506",
        what=f"the weights of {clients} clients sum to {total!r}, which cannot be divided by",
        where="the aggregation of this round",
        fix="see why no client trained on anything, or set aggregation.weighting=uniform",
    )
