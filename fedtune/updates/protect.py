"""The last step before a delta may leave a site.

Only a `Protected` becomes a message (`fedtune.updates.codec.to_arrays`), and only `protect` makes one, so
that a delta which nobody looked at cannot be sent by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any

import numpy as np

from fedtune.errors import Problem, UpdateError
from fedtune.training.delta import Delta
from fedtune.updates.problems import capped, not_finite

__all__ = ["Protected", "protect"]

_MADE_BY_PROTECT = object()


@dataclass(frozen=True, kw_only=True)
class Protected:
    """A delta that may leave the site.

    Guarantees:
        * `protect` made it.
        * Every value is finite.

    Attributes:
        tensors: As in `Delta`.
    """

    tensors: Mapping[str, np.ndarray[Any, np.dtype[Any]]]
    made_by: InitVar[object] = None

    def __post_init__(self, made_by: object) -> None:
        if made_by is not _MADE_BY_PROTECT:
            raise TypeError("only protect() makes a Protected: call protect(delta)")


def protect(delta: Delta) -> Protected:
    """Let a delta pass as it is, if it is a number in every place.

    Args:
        delta: What local training changed.

    Returns:
        The same arrays, not copied.

    Raises:
        UpdateError: FT504 for each tensor with values that are not finite, FT501 for a delta of no tensors.
    """
    if not delta.tensors:
        raise UpdateError(
            Problem(
                code="FT501",
                what="the delta holds no tensors",
                where="the delta of local training",
                fix="train at least one of the factors A and B",
            )
        )
    problems = [
        problem
        for name, tensor in delta.tensors.items()
        if (problem := not_finite(name, tensor, "the delta of local training")) is not None
    ]
    if problems:
        raise UpdateError(capped(problems))
    return Protected(tensors=delta.tensors, made_by=_MADE_BY_PROTECT)
