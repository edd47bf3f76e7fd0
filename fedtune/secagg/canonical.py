"""One unambiguous byte string for a list of values: what is hashed and signed.

Each value is a type tag, its length in eight bytes, and its bytes; so no two different lists give the same
string, whatever the values hold.
"""

from __future__ import annotations

import functools
import hashlib

__all__ = ["PROTOCOL", "canonical", "digest"]

PROTOCOL = "fedtune-secagg/1"
"""Name and version of the protocol; part of everything that is hashed, derived or signed."""


def canonical(*parts: bytes | str | int) -> bytes:
    """Length-prefixed, tagged concatenation; integers are non-negative and have no leading zeros.

    Guarantees:
        * Injective: different lists of parts give different bytes.
        * The encoding of a list is that of its beginning followed by that of its end.

    Raises:
        ValueError: An integer is negative.
    """
    encoded: list[bytes] = []
    for part in parts:
        if isinstance(part, bytes):
            tag, raw = b"b", part
        elif isinstance(part, str):
            tag, raw = b"s", part.encode()
        else:
            if part < 0:
                raise ValueError(f"canonical integers are non-negative, got {part}")
            tag, raw = b"i", part.to_bytes((part.bit_length() + 7) // 8, "big")
        encoded += (tag, len(raw).to_bytes(8, "big"), raw)
    return b"".join(encoded)


def digest(purpose: str, *parts: bytes | str | int) -> bytes:
    """SHA-256 (32 bytes) of the canonical parts under a purpose, so that no hash serves two ends."""
    return hashlib.sha256(_prefix(purpose) + canonical(*parts)).digest()


@functools.lru_cache(maxsize=64)
def _prefix(purpose: str) -> bytes:
    return canonical(PROTOCOL, purpose)
