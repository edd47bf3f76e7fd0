"""JSON files that come from outside: bounded, exactly the keys that are written, one form for each value.

Everything that is wrong raises ValueError or TypeError with a sentence for a person; who reads a file turns
it into the code of that file.
"""

from __future__ import annotations

import json
from typing import Any, Final

__all__ = ["MAX_FILE_BYTES", "exactly", "hex_bytes", "integer", "listed", "parse_json", "printable", "string"]

MAX_FILE_BYTES: Final = 64 * 2**20
_LONGEST_SHOWN: Final = 128


def parse_json(text: str | bytes) -> Any:
    """JSON in which no key occurs twice.

    Raises:
        ValueError: It is too large, is no JSON or is nested too deeply.
    """
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"more than {MAX_FILE_BYTES} bytes")
    try:
        return json.loads(text, object_pairs_hook=_no_duplicate_keys)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key occurs twice among {keys!r:.200}")
    return dict(pairs)


def exactly(raw: Any, *keys: str, form: str | None = None) -> None:
    """Check an object's keys, and its ``format`` where it has one."""
    if not isinstance(raw, dict) or set(raw) != set(keys):
        raise ValueError(f"expected an object with the keys {list(keys)}")
    if form is not None and raw["format"] != form:
        raise ValueError(f"format is {raw['format']!r:.80}, expected {form!r}")


def string(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"expected a string, got {type(raw).__name__}")
    raw.encode()  # a lone surrogate cannot be hashed
    return raw


def integer(raw: Any) -> int:
    if type(raw) is not int or not 0 <= raw < 2**63:
        raise TypeError(f"expected a whole number, got {raw!r:.80}")
    return raw


def listed(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise TypeError(f"expected a list, got {type(raw).__name__}")
    return raw


def hex_bytes(raw: Any, size: int) -> bytes:
    """Exactly `size` bytes in lower-case hex."""
    value = bytes.fromhex(string(raw))
    if len(value) != size or value.hex() != raw:
        raise ValueError(f"expected {size} bytes in lower-case hex, got {raw!r:.80}")
    return value


def printable(text: str, *, longest: int | None = _LONGEST_SHOWN) -> str:
    """A text from outside as a terminal may show it: nothing in it moves the cursor or turns a line."""
    return "".join(mark if mark.isprintable() else "?" for mark in text[:longest])
