"""JSON in exactly one form: the bytes that fedtune writes for the same values, and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fedtune.secagg.fields import exactly, parse_json

__all__ = ["read", "written"]


def written(fields: Mapping[str, Any]) -> bytes:
    """The only form in which these fields are read."""
    return json.dumps(fields, indent=1, allow_nan=False).encode() + b"\n"


def read(data: bytes, *keys: str, form: str) -> dict[str, Any]:
    """An object with exactly these keys in this order, as `written` writes it.

    Raises:
        ValueError: It is anything else.
        TypeError: Likewise.
    """
    raw = parse_json(data)
    exactly(raw, *keys, form=form)
    try:
        same = list(raw) == list(keys) and written(raw) == data
    except RecursionError:
        same = False
    if not same:
        raise ValueError("it was changed after fedtune wrote it")
    fields: dict[str, Any] = raw
    return fields
