"""Stateless randomness: every random choice has its own seed, derived from what it is for.

Nothing in a run shares a generator, so the order in which clients are visited, a resumed run and another
process all draw the same numbers.
"""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(*parts: str | int) -> int:
    """Derive a seed from what it is for, such as ``derive_seed(seed, "adapter", name)``.

    SHA-256 over the parts, each written as a type letter, its length in bytes and its UTF-8 text, so that
    ``("ab", "c")``, ``("a", "bc")`` and ``("1",)``, ``(1,)`` all differ. The result is the same on every
    machine and Python version.

    Args:
        *parts: Strings and integers of any size; at least one.

    Returns:
        An integer in [0, 2**63).

    Raises:
        TypeError: A part is neither a string nor an integer (a bool is refused: it is a flag, not a name).
        ValueError: There are no parts.
    """
    if not parts:
        raise ValueError("derive_seed needs at least one part, got none")
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, str | int):
            raise TypeError(f"derive_seed takes strings and integers, got {part!r}")
        text = str(part).encode("utf-8", "surrogatepass")
        digest.update(f"{'s' if isinstance(part, str) else 'i'}{len(text)}:".encode())
        digest.update(text)
    return int.from_bytes(digest.digest()[:8], "big") >> 1
