"""From what a site sent to the delta that is aggregated: the other half of `fedtune.updates.encode`."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from math import prod

import numpy as np
from flwr.app import ArrayRecord

from fedtune.config.schema import UpdatesConfig
from fedtune.errors import Problem, UpdateError
from fedtune.models.adapter import Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta
from fedtune.updates.codec import Layout, arrays_exactly, from_arrays
from fedtune.updates.encode import CODES, SCALES, places
from fedtune.updates.problems import capped, shown
from fedtune.updates.quantize import BlockQuantizer, Floats, Integers

__all__ = ["decode"]


def decode(
    record: ArrayRecord,
    spec: AdapterSpec,
    factors: Collection[Factor],
    updates: UpdatesConfig,
    *,
    where: str = "the message",
) -> Delta:
    """Decode an update that another machine sent, if it is one that `encode` can have made.

    Guarantees:
        * As `from_arrays`: the expected tensors, each in memory of its own, finite, or an `UpdateError`.
        * A quantized update becomes float32; lengths and types are compared before a value is looked at.

    Args:
        record: What arrived.
        spec: Names, shapes and dtype of the run's adapter.
        factors: Those trained in this round.
        updates: How the run's updates travel.
        where: Who sent it and when, for the text of errors.

    Raises:
        UpdateError: As `from_arrays`; FT509, scales or integers that no encoder makes; FT511, an update
            longer than ``updates.max_norm``.
    """
    if updates.quantization == "none":
        return _of_bounded_norm(from_arrays(record, spec, factors, where=where), updates, where)
    quantizer = BlockQuantizer(updates=updates)
    sizes = {name: prod(spec.shapes[name]) for name in spec.names(factors)}
    last = places(quantizer, sizes)[-1]
    layouts = {
        CODES: Layout(shape=(last.codes.stop,), dtype=quantizer.code_dtype),
        SCALES: Layout(shape=(last.scales.stop,), dtype=np.dtype(np.float32)),
    }
    arrays = arrays_exactly(record, layouts, where=where)
    problems = capped(_problems(arrays[CODES], arrays[SCALES], sizes, quantizer, where))
    if problems:
        raise UpdateError(problems)
    tensors: Adapter = {}
    for place in places(quantizer, sizes):
        tensor = np.empty(spec.shapes[place.name], dtype=np.float32)
        quantizer.dequantize(arrays[CODES][place.codes], arrays[SCALES][place.scales], tensor.reshape(-1))
        tensors[place.name] = tensor
    return _of_bounded_norm(tensors, updates, where)


def _of_bounded_norm(tensors: Adapter, updates: UpdatesConfig, where: str) -> Delta:
    delta = Delta(tensors=tensors)
    if updates.max_norm is not None and delta.norm > updates.max_norm:
        raise UpdateError(
            Problem(
                code="FT511",
                what=f"the update's L2 norm is {delta.norm:.4g}, and at most it may be {updates.max_norm:g}",
                where=where,
                fix="lower training.learning_rate, or set updates.max_norm if such updates are meant",
            )
        )
    return delta


def _problems(
    codes: Integers, scales: Floats, sizes: dict[str, int], quantizer: BlockQuantizer, where: str
) -> Iterator[Problem]:
    for place in places(quantizer, sizes):
        for what in (
            quantizer.problem_of_scales(scales[place.scales]),
            quantizer.problem_of_codes(codes[place.codes], place.values),
        ):
            if what is not None:
                yield Problem(
                    code="FT509",
                    what=what,
                    where=f"{where}, tensor {shown(place.name)}",
                    fix="install the same fedtune on the server and on every site",
                )
