"""Masks: pseudorandom streams that are added to a vector and its lanes, and that cancel in the sum.

A mask is the keystream of AES-256 in counter mode (NIST SP 800-38A), or of ChaCha20 where the federation
has machines without AES instructions, under a key used for nothing else; the counter starts at 0. One
stream covers the vector and then the lanes. Bonawitz et al. 2017, section 4, "Masking with one-time pads"
and "Double-masking".

The vector is walked in pieces that stay in the cache, with all masks applied to a piece before the next
one is touched; the keystream is written into one buffer that is used again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

__all__ = ["PRGS", "Mask", "Prg", "add_masks", "keystream", "pair_sign"]

Prg = Literal["aes256ctr", "chacha20"]
PRGS: Final[tuple[Prg, ...]] = get_args(Prg)

CHUNK_BYTES: Final = 256 * 1024
_SLACK: Final = 16  # update_into may ask for a block more than it writes
_STREAMS_AT_ONCE: Final = 512
_ZEROS: Final = bytes(CHUNK_BYTES)


@dataclass(frozen=True, kw_only=True)
class Mask:
    """One stream and whether it is added (+1) or subtracted (−1)."""

    key: bytes
    sign: Literal[1, -1]


def pair_sign(own: int, peer: int) -> Literal[1, -1]:
    """The sign with which member `own` applies the mask it shares with `peer`: one adds, one subtracts."""
    return 1 if own < peer else -1


def keystream(key: bytes, prg: Prg) -> CipherContext:
    """A fresh stream from its beginning; encrypting zeros gives the mask bytes."""
    if prg == "aes256ctr":
        return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


def add_masks(
    vector: NDArray[np.unsignedinteger[Any]],
    lanes: NDArray[np.uint64],
    masks: Sequence[Mask],
    *,
    prg: Prg,
) -> None:
    """Add every mask to the vector (mod 2^16, 2^32 or 2^64 by its dtype) and the lanes (mod 2^64), in place.

    Args:
        vector: Contiguous, one unsigned integer for each parameter.
        lanes: Contiguous uint64.
        masks: Streams to add or subtract; opposite signs of one key cancel exactly.
        prg: The stream cipher, the same for all members of a cohort.
    """
    # Each stream has a cipher context; thousands at once (a large cohort's unmasking) would fill the cache.
    for first in range(0, len(masks), _STREAMS_AT_ONCE):
        batch = masks[first : first + _STREAMS_AT_ONCE]
        streams = [(keystream(mask.key, prg), mask.sign) for mask in batch]
        buffer = bytearray(CHUNK_BYTES + _SLACK)
        _add_streams(vector, streams, buffer)
        _add_streams(lanes, streams, buffer)


def _add_streams(
    target: NDArray[np.unsignedinteger[Any]], streams: Sequence[tuple[CipherContext, int]], buffer: bytearray
) -> None:
    per_chunk = CHUNK_BYTES // target.itemsize
    words = np.frombuffer(buffer, dtype=target.dtype.newbyteorder("<"), count=per_chunk)
    zeros = memoryview(_ZEROS)
    for start in range(0, len(target), per_chunk):
        piece = target[start : start + per_chunk]
        mask = words[: len(piece)]
        for stream, sign in streams:
            stream.update_into(zeros[: piece.nbytes], buffer)
            (np.add if sign == 1 else np.subtract)(piece, mask, out=piece)
