"""From an update to ring elements and back: clip, weigh, scale, round stochastically.

The randomness of rounding comes from the operating system, never from the run's seed: whoever knew it
could undo the rounding, and a seed is known to the coordinator. A fresh 256-bit key is drawn for every
update and expanded by AES-256-CTR into 32 bits for each entry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from fedtune.errors import SecureAggregationError
from fedtune.secagg.encoding import METRIC_LEVELS, Encoding
from fedtune.secagg.masks import keystream
from fedtune.secagg.problems import problem, refusal

__all__ = ["DecodedMean", "EncodedUpdate", "decode_mean", "encode_update"]

_CHUNK: Final = 16_384  # entries: the working arrays of a chunk fit a 512 KiB cache
_SIGNED: Final[dict[int, np.dtype[Any]]] = {16: np.dtype("<i2"), 32: np.dtype("<i4"), 64: np.dtype("<i8")}


@dataclass(frozen=True, kw_only=True)
class EncodedUpdate:
    """An update as ring elements, not yet masked; `encode_update` makes it.

    Attributes:
        encoding_hash: The rules it was made by.
        vector: (parameters,) unsigned, little-endian, of the ring's width.
        lanes: (2 + metrics,) uint64: count, weight, metrics.
    """

    encoding_hash: bytes
    vector: NDArray[np.unsignedinteger[Any]]
    lanes: NDArray[np.uint64]

    def __repr__(self) -> str:  # never the numbers: they are the secret
        return f"EncodedUpdate({self.vector.size} parameters, {self.lanes.size} lanes)"


@dataclass(frozen=True, kw_only=True)
class DecodedMean:
    """What the sum of a cohort says.

    Attributes:
        tensors: Name to weighted mean of the members' clipped updates, float64, by tensor.
        count: Members in the sum.
        total_weight: W, the sum of their weights.
        metrics: Name to unweighted mean of the members' metric.
    """

    tensors: Mapping[str, NDArray[np.float64]]
    count: int
    total_weight: int
    metrics: Mapping[str, float]


def encode_update(
    tensors: Mapping[str, NDArray[Any]],
    encoding: Encoding,
    *,
    weight: int = 1,
    metrics: Mapping[str, float] | None = None,
) -> EncodedUpdate:
    """Clip to the public bounds, weigh, scale and round to the ring, as the module `encoding` states.

    Guarantees:
        * Unbiased: the expectation of an encoded entry is its exact value (up to 2^-32).
        * Bounded: no entry exceeds L in magnitude, so a sum of `max_cohort` updates cannot overflow.
        * A NaN or an infinity anywhere is refused; nothing is clipped to hide it.

    Args:
        tensors: Exactly the names and shapes of the encoding, floating point.
        encoding: The public rules.
        weight: Declared integer weight, 1 … max_weight.
        metrics: Exactly the names of the encoding's metric lanes.

    Raises:
        SecureAggregationError: FT914 with every wrong name, shape, weight, metric and non-finite tensor.
    """
    metrics = metrics or {}
    _check_inputs(tensors, encoding, weight, metrics)
    vector = np.empty(encoding.size, dtype=encoding.dtype)
    signed = vector.view(_SIGNED[encoding.ring_bits])
    share = weight / encoding.max_weight
    stream = keystream(os.urandom(32), "aes256ctr")
    zeros = memoryview(bytes(4 * _CHUNK))
    random_bytes = bytearray(4 * _CHUNK + 16)
    random_words = np.frombuffer(random_bytes, dtype="<i4", count=_CHUNK)
    scaled = np.empty(_CHUNK, dtype="<f8")
    uniform = np.empty(_CHUNK)
    start = 0
    broken = []
    for tensor in encoding.tensors:
        flat = np.ascontiguousarray(tensors[tensor.name]).reshape(-1)
        # A hair below L, so that -L less one half is never a tie that rounds to -L - 1.
        limit = np.nextafter(encoding.levels * share, 0.0)
        factor = encoding.levels * share / tensor.bound
        finite = True
        for at in range(0, tensor.size, _CHUNK):
            size = min(_CHUNK, tensor.size - at)
            x, u = scaled[:size], uniform[:size]
            np.copyto(x, flat[at : at + size])
            x *= factor
            if not (x.min() >= -limit and x.max() <= limit):  # a NaN compares false
                finite = finite and bool(np.isfinite(x).all())
                np.clip(x, -limit, limit, out=x)
            stream.update_into(zeros[: 4 * size], random_bytes)
            np.copyto(u, random_words[:size])
            u *= 2.0**-32  # uniform in [-1/2, 1/2)
            x += u
            if finite:
                np.copyto(signed[start : start + size], np.rint(x, out=x), casting="unsafe")
            start += size
        if not finite:
            broken.append(problem("FT914", f"{tensor.name} holds a NaN or an infinity", where=tensor.name))
    if broken:
        raise SecureAggregationError(broken)
    return EncodedUpdate(
        encoding_hash=encoding.hash, vector=vector, lanes=_encode_lanes(encoding, weight, metrics)
    )


def _check_inputs(
    tensors: Mapping[str, NDArray[Any]], encoding: Encoding, weight: int, metrics: Mapping[str, float]
) -> None:
    expected = {tensor.name: tensor.shape for tensor in encoding.tensors}
    problems = [
        problem("FT914", f"{name} is not part of the encoding", where=name)
        for name in sorted(set(tensors) - set(expected))
    ]
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(problem("FT914", f"{name} is missing from the update", where=name))
        elif tensors[name].shape != shape or tensors[name].dtype.kind != "f":
            got = f"{tensors[name].shape} of {tensors[name].dtype}"
            problems.append(
                problem("FT914", f"{name} has shape {got}, expected {shape} of floats", where=name)
            )
    if not 1 <= weight <= encoding.max_weight:
        problems.append(
            problem("FT914", f"weight is 1 … {encoding.max_weight}, got {weight}", where="weight")
        )
    names = {metric.name for metric in encoding.metrics}
    if set(metrics) != names:
        problems.append(
            problem("FT914", f"metrics are {sorted(names)}, got {sorted(metrics)}", where="metrics")
        )
    problems += [
        problem("FT914", f"metric {name} is {value}", where=name)
        for name, value in metrics.items()
        if not np.isfinite(value)
    ]
    if problems:
        raise SecureAggregationError(problems)


def _encode_lanes(encoding: Encoding, weight: int, metrics: Mapping[str, float]) -> NDArray[np.uint64]:
    values = [1, weight]
    for metric in encoding.metrics:
        clipped = min(max(metrics[metric.name], -metric.bound), metric.bound)
        values.append(round(clipped / metric.bound * METRIC_LEVELS))
    return np.array(values, dtype=np.int64).view(np.uint64)


def decode_mean(
    vector: NDArray[np.unsignedinteger[Any]], lanes: NDArray[np.uint64], encoding: Encoding
) -> DecodedMean:
    """The weighted mean that a sum of encoded updates stands for; see `Encoding.error_bound`.

    Args:
        vector: (parameters,) the sum in the ring.
        lanes: (2 + metrics,) the sums of the lanes.
        encoding: The rules all members encoded by.

    Raises:
        SecureAggregationError: FT924, count or weight are impossible for such a sum.
    """
    count, weight = (int(lane) for lane in lanes[:2].view(np.int64))
    if not (1 <= count <= encoding.max_cohort and count <= weight <= count * encoding.max_weight):
        raise refusal("FT924", f"the sum says {count} members of total weight {weight}", where="lanes")
    signed = vector.view(_SIGNED[encoding.ring_bits])
    tensors = {}
    start = 0
    for tensor in encoding.tensors:
        piece = signed[start : start + tensor.size]
        unit = tensor.bound * encoding.max_weight / (encoding.levels * weight)
        tensors[tensor.name] = (piece * unit).reshape(tensor.shape)
        start += tensor.size
    sums = lanes[2:].view(np.int64)
    metrics = {
        metric.name: float(total) / METRIC_LEVELS * metric.bound / count
        for metric, total in zip(encoding.metrics, sums, strict=True)
    }
    return DecodedMean(tensors=tensors, count=count, total_weight=weight, metrics=metrics)
