"""Which tensors a secure sum may hold, in which order, and how far each entry may go.

Tensors with a row or column for each token of the vocabulary are refused: a row that one site alone
touches stands in the sum in clear, because all the others add zero to it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from fedtune.errors import SecureAggregationError
from fedtune.secagg.problems import problem

__all__ = ["TensorBound", "tensor_bounds"]

_TOKEN_NAMES: Final = ("embed", "lm_head", "wte", "word_embeddings", "modules_to_save")


@dataclass(frozen=True, kw_only=True)
class TensorBound:
    """One tensor of the update.

    Attributes:
        name: Its name in the adapter's state dict.
        shape: Its dimensions, all positive.
        bound: Public bound: entries are clipped to [−bound, bound] before they are encoded.
    """

    name: str
    shape: tuple[int, ...]
    bound: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def tensor_bounds(
    shapes: Mapping[str, tuple[int, ...]], bounds: float | Mapping[str, float], *, vocabulary: int
) -> tuple[TensorBound, ...]:
    """The tensors of a sum in the order of their names, each with its public clip bound.

    Args:
        shapes: Name to shape of every trained tensor.
        bounds: One bound for all, or one for each name; in the unit of the parameters.
        vocabulary: Number of tokens of the base model; a dimension of this size is token-indexed.

    Raises:
        SecureAggregationError: All problems at once: FT916 for a token-indexed tensor, FT914 for a bound
            that is missing, not positive or not finite, and for an empty or impossible shape.
    """
    problems = []
    tensors = []
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        bound = bounds.get(name, math.nan) if isinstance(bounds, Mapping) else bounds
        if any(part in name.lower() for part in _TOKEN_NAMES) or vocabulary in shape:
            problems.append(
                problem("FT916", f"{name} {shape} has an entry for each token of the vocabulary", where=name)
            )
        if not (math.isfinite(bound) and bound > 0):
            problems.append(problem("FT914", f"{name} needs a positive clip bound, got {bound}", where=name))
        if any(size < 1 for size in shape):
            problems.append(problem("FT914", f"{name} has an empty dimension: {shape}", where=name))
        tensors.append(TensorBound(name=name, shape=shape, bound=float(bound)))
    if not tensors:
        problems.append(problem("FT914", "there is no trained tensor to encode", where="shapes"))
    if problems:
        raise SecureAggregationError(problems)
    return tuple(tensors)
