"""The other side of the benchmark: Flower's own SecAgg+, from the installed flwr.

Its functions are called as `flwr.client.mod.secure_aggregation.secaggplus_mod._collect_masked_vectors` calls
them, without the (de)serialization around them, and with the defaults of its `SecAggPlusWorkflow`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["flower_mask", "flower_mean", "flower_wire_bytes"]

CLIPPING_RANGE: Final = 8.0
QUANTIZATION_RANGE: Final = 4_194_304
MODULUS_RANGE: Final = 4_294_967_296
MAX_WEIGHT: Final = 1000.0


def flower_mask(parameters: list[NDArray[Any]], *, weight: int, peers: int) -> list[NDArray[Any]]:
    """Quantize and mask one client's update, with one private and `peers` pairwise masks."""
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (  # noqa: PLC0415  # flwr is heavy
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen  # noqa: PLC0415

    quantized = _quantize(parameters, weight)
    shapes = [array.shape for array in quantized]
    quantized = parameters_addition(quantized, pseudo_rand_gen(os.urandom(32), MODULUS_RANGE, shapes))
    for peer in range(peers):
        mask = pseudo_rand_gen(os.urandom(32), MODULUS_RANGE, shapes)
        combine = parameters_addition if peer % 2 else parameters_subtraction
        quantized = combine(quantized, mask)
    masked: list[NDArray[Any]] = parameters_mod(quantized, MODULUS_RANGE)
    return masked


def _quantize(parameters: list[NDArray[Any]], weight: int) -> list[NDArray[Any]]:
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (  # noqa: PLC0415
        factor_combine,
        parameters_multiply,
    )
    from flwr.common.secure_aggregation.quantization import quantize  # noqa: PLC0415

    ratio = round(weight / MAX_WEIGHT * QUANTIZATION_RANGE)
    scaled = parameters_multiply(parameters, ratio / QUANTIZATION_RANGE)
    combined: list[NDArray[Any]] = factor_combine(ratio, quantize(scaled, CLIPPING_RANGE, QUANTIZATION_RANGE))
    return combined


def flower_wire_bytes(masked: list[NDArray[Any]]) -> int:
    """Bytes of the masked arrays as Flower serializes them."""
    from flwr.common import ndarray_to_bytes  # noqa: PLC0415

    return sum(len(ndarray_to_bytes(array)) for array in masked)


def flower_mean(updates: Sequence[NDArray[Any]], weights: Sequence[int]) -> NDArray[np.float64]:
    """The weighted mean as Flower's workflow decodes it from the (unmasked) sum."""
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (  # noqa: PLC0415
        factor_extract,
        parameters_addition,
        parameters_mod,
    )
    from flwr.common.secure_aggregation.quantization import dequantize  # noqa: PLC0415

    total: list[NDArray[Any]] | None = None
    for update, weight in zip(updates, weights, strict=True):
        quantized = [array.astype(np.int64) for array in _quantize([update], weight)]  # as masking leaves it
        total = quantized if total is None else parameters_addition(total, quantized)
    factor, vectors = factor_extract(parameters_mod(total or [], MODULUS_RANGE))
    # As SecAggPlusWorkflow.unmask_stage does: shift by each member's range, divide by the weights' sum.
    decoded = dequantize(vectors, CLIPPING_RANGE, QUANTIZATION_RANGE)[0]
    decoded = decoded - (len(updates) - 1) * CLIPPING_RANGE
    mean: NDArray[np.float64] = decoded / (factor / QUANTIZATION_RANGE)
    return mean
