"""The table of a settings file's keys, for its page of reference."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from fedtune.config.typed_yaml import TypedYaml

__all__ = ["reference_table"]

T = TypeVar("T")


def reference_table(file: TypedYaml[T], value: T, *, column: str) -> Iterator[str]:
    """Yield the lines of a Markdown table: every key with the values it takes, one of them, and its meaning.

    Args:
        file: The kind of file.
        value: One such file, for the third column.
        column: Title of that column.
    """
    shown: Mapping[str, Any] = file.adapter.dump_python(value, mode="json")
    yield f"| key | values | {column} | meaning |\n|---|---|---|---|"
    for key in file.keys.values():
        given: Any = shown
        for part in key.name.split("."):
            given = None if given is None else given[part]
        absent = "." in key.name and shown.get(key.name.partition(".")[0]) is None
        left_out = absent or (isinstance(given, dict) and key.is_mapping)
        meaning = key.description.replace("``", "`").replace("|", "\\|")
        yield f"| `{key.name}` | {key.values} | {'' if left_out else f'`{json.dumps(given)}`'} | {meaning} |"
