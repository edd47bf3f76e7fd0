"""Small adapters with random values, for tests of what is done with adapters as plain arrays."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta


def small_spec(
    layers: tuple[tuple[int, int], ...] = ((5, 7), (3, 4)),
    *,
    rank: int = 2,
    dtype: str = "float32",
    scaling: float = 2.0,
) -> AdapterSpec:
    """Return a spec with one pair for each (out, in)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (fan_out, fan_in) in enumerate(layers):
        layer = f"base_model.model.model.layers.{i}.self_attn.q_proj"
        shapes[f"{layer}.lora_A.weight"] = (rank, fan_in)
        shapes[f"{layer}.lora_B.weight"] = (fan_out, rank)
    return AdapterSpec(shapes=shapes, scaling=scaling, dtype=dtype)


def random_adapter(spec: AdapterSpec, seed: int, *, scale: float = 1.0) -> Adapter:
    stream = np.random.default_rng(seed)
    return {
        name: (scale * stream.normal(size=shape)).astype(spec.dtype) for name, shape in spec.shapes.items()
    }


def random_delta(
    spec: AdapterSpec, seed: int, *, factors: Collection[Factor] = FACTORS, scale: float = 1.0
) -> Delta:
    values = random_adapter(spec, seed, scale=scale)
    return Delta(tensors={name: values[name] for name in spec.names(factors)})
