"""What local training changed: the one thing that a client has to say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from types import MappingProxyType
from typing import Any

import numpy as np

__all__ = ["Delta"]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """The trained adapter minus the received one.

    The sign is said here, once: ``delta = trained - received``, so that ``received + delta`` is trained.

    Attributes:
        tensors: Name (see `fedtune.models.adapter`) to change, of the spec's shape and dtype; it holds the
            trained factors only.
    """

    tensors: Mapping[str, np.ndarray[Any, np.dtype[Any]]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled, and a delta may cross to another process.
        return _rebuild, (dict(self.tensors),)

    @cached_property
    def norm(self) -> float:
        """L2 norm over all values of all tensors, summed in float64."""
        flat = (tensor.ravel().astype(np.float64) for tensor in self.tensors.values())
        return sqrt(sum(float(values @ values) for values in flat))


def _rebuild(tensors: dict[str, np.ndarray[Any, np.dtype[Any]]]) -> Delta:
    return Delta(tensors=tensors)
