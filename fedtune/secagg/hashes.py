"""Hashes of what training starts from and works on, equal wherever they are computed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedtune.secagg.canonical import canonical, digest

__all__ = ["adapter_hash", "samples_hash"]


def adapter_hash(adapter: Mapping[str, NDArray[Any]]) -> bytes:
    """H(adapter): SHA-256 over names, types, shapes and values, in the order of the names."""
    parts: list[bytes | str | int] = []
    for name in sorted(adapter):
        array = np.ascontiguousarray(adapter[name])
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        parts += [name, little.dtype.str, len(array.shape), *array.shape]
        parts.append(hashlib.sha256(little.tobytes()).digest())
    return digest("adapter", *parts)


def samples_hash(samples: Iterable[Sequence[NDArray[Any]]]) -> bytes:
    """H(samples): SHA-256 over the multiset of the rows that a round trained on.

    Args:
        samples: For each row its arrays, such as token ids and loss mask. Their order does not matter, so
            that another order of the same rows is the same update.
    """
    rows = sorted(
        hashlib.sha256(canonical(*(np.ascontiguousarray(array).tobytes() for array in row))).digest()
        for row in samples
    )
    return digest("samples", *rows)
