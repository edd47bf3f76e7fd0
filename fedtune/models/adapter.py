"""The adapter as plain arrays: what it is called, how large it is, and where it starts.

A LoRA adapter adds ``(alpha / rank) * B A`` to a linear layer (Hu et al., "LoRA", 2021, section 4.1). Names
are the keys of peft's state dict, such as
``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``, so that an adapter can be saved in peft's
format and compared with it without a translation. Nothing here needs torch: a coordinator has no model.

Shapes: ``A`` is (rank, in_features), ``B`` is (out_features, rank).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from fedtune.data.seeds import derive_seed

__all__ = ["FACTORS", "Adapter", "AdapterSpec", "Factor", "initial_adapter", "rank_axis", "rank_of"]

Factor = Literal["A", "B"]
FACTORS: tuple[Factor, ...] = get_args(Factor)

Adapter: TypeAlias = dict[str, np.ndarray[Any, np.dtype[Any]]]
"""One array for each name of an `AdapterSpec`, of its shape and dtype."""

_SUFFIXES: dict[Factor, str] = {"A": ".lora_A.weight", "B": ".lora_B.weight"}


@dataclass(frozen=True, kw_only=True)
class AdapterSpec:
    """Names, shapes and type of an adapter's tensors.

    Guarantees:
        * ``shapes`` iterates in sorted order of the names, whatever the order it was given in.
        * Every name belongs to a pair: each ``A`` has its ``B``, of the same rank.

    Attributes:
        shapes: Name (peft state-dict key) to shape; ``A`` is (rank, in), ``B`` is (out, rank).
        scaling: ``alpha / rank``, the factor before ``B A``.
        dtype: ``float32``, or ``float64`` where the base computes in float64.

    Raises:
        ValueError: A name that is neither factor, a factor without its partner, or shapes that do not fit.
    """

    shapes: Mapping[str, tuple[int, ...]]
    scaling: float
    dtype: str

    def __post_init__(self) -> None:
        shapes = {name: tuple(self.shapes[name]) for name in sorted(self.shapes)}
        object.__setattr__(self, "shapes", MappingProxyType(shapes))
        for name, shape in shapes.items():
            if len(shape) != 2:
                raise ValueError(f"a LoRA factor is a matrix, got {name} of shape {shape}")
            partner = shapes.get(self.partner(name))
            if partner is None:
                raise ValueError(f"{name} has no partner {self.partner(name)}")
            rank_axis = 0 if self.factor(name) == "A" else 1
            if shape[rank_axis] != partner[1 - rank_axis]:
                raise ValueError(f"the factors of {name} differ in rank: {shape} and {partner}")

    def __reduce__(self) -> tuple[Any, ...]:
        # A mapping proxy cannot be pickled, and a spec travels to Ray actors.
        return _rebuild, (dict(self.shapes), self.scaling, self.dtype)

    def factor(self, name: str) -> Factor:
        """Return which factor a tensor is.

        Raises:
            ValueError: The name is of neither factor.
        """
        for factor, suffix in _SUFFIXES.items():
            if name.endswith(suffix):
                return factor
        raise ValueError(f"{name!r} ends in neither {' nor '.join(_SUFFIXES.values())}")

    def partner(self, name: str) -> str:
        """Return the name of the other factor of the same layer."""
        factor = self.factor(name)
        other: Factor = "B" if factor == "A" else "A"
        return name.removesuffix(_SUFFIXES[factor]) + _SUFFIXES[other]

    def names(self, factors: Collection[Factor] = FACTORS) -> tuple[str, ...]:
        """Return the sorted names of the tensors of these factors."""
        return tuple(name for name in self.shapes if self.factor(name) in factors)

    def nbytes(self, factors: Collection[Factor] = FACTORS) -> int:
        """Return the bytes that the tensors of these factors hold."""
        return self.parameters(factors) * np.dtype(self.dtype).itemsize

    def parameters(self, factors: Collection[Factor] = FACTORS) -> int:
        """Return the number of values in the tensors of these factors."""
        return sum(prod(self.shapes[name]) for name in self.names(factors))

    def with_rank(self, rank: int) -> AdapterSpec:
        """Return the spec of an adapter of the same layers, scaling and type with another rank.

        Raises:
            ValueError: The rank is below 1.
        """
        if rank < 1:
            raise ValueError(f"an adapter has a rank of at least 1, got {rank}")
        shapes = {
            name: (rank, shape[1]) if self.factor(name) == "A" else (shape[0], rank)
            for name, shape in self.shapes.items()
        }
        return AdapterSpec(shapes=shapes, scaling=self.scaling, dtype=self.dtype)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """``(name of A, name of B)`` of each adapted layer, in sorted order."""
        return tuple((name, self.partner(name)) for name in self.shapes if self.factor(name) == "A")


def rank_axis(name: str) -> int:
    """Return the axis of a tensor that the rank counts: 0 of A, 1 of B."""
    return 0 if name.endswith(_SUFFIXES["A"]) else 1


def rank_of(adapter: Adapter) -> int:
    """Return the rank of an adapter's tensors; every layer has the same."""
    return next(len(tensor) for name, tensor in adapter.items() if name.endswith(_SUFFIXES["A"]))


def _rebuild(shapes: dict[str, tuple[int, ...]], scaling: float, dtype: str) -> AdapterSpec:
    return AdapterSpec(shapes=shapes, scaling=scaling, dtype=dtype)


def initial_adapter(spec: AdapterSpec, seed: int) -> Adapter:
    """Draw the adapter that every client starts from: the same on every machine.

    ``A`` is uniform in ``[-1/sqrt(in), 1/sqrt(in))``, which is the Kaiming-uniform initialisation with
    ``a = sqrt(5)`` that peft uses; ``B`` is zero, so that the adapted model starts as the base (Hu et al.,
    2021, section 4.1). Each tensor has a PCG64 stream of its own, keyed by the seed and its name: a
    tensor's values depend neither on the other tensors nor on a library's random state.

    Args:
        spec: Names, shapes and type.
        seed: The run's seed.

    Returns:
        A new array for each name, of the spec's shape and dtype.
    """
    adapter: Adapter = {}
    for name, shape in spec.shapes.items():
        if spec.factor(name) == "B":
            adapter[name] = np.zeros(shape, dtype=spec.dtype)
            continue
        bound = 1.0 / sqrt(shape[1])
        stream = np.random.Generator(np.random.PCG64(derive_seed(seed, "adapter", name)))
        adapter[name] = stream.uniform(-bound, bound, size=shape).astype(spec.dtype)
    return adapter
