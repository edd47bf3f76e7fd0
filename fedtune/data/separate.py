"""One file of rows for each value of a column: what each site of a federation would hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fedtune.data.examples import Example
from fedtune.data.partition.base import labels_of, rows_by_label
from fedtune.errors import DataError, Problem

__all__ = ["separate"]

_ROLES = frozenset({"id", "messages", "text", "instruction", "input", "output"})
_LONGEST_NAME = 100


def separate(examples: Sequence[Example], column: str) -> dict[str, bytes]:
    """Return JSON lines of the rows of each value, by file name, in the order of the values' first rows.

    Guarantee: read again with ``data.format=auto``, the files hold the same examples in the same order, with
    the same ids and columns.

    Args:
        examples: The rows.
        column: Of the rows; each of its values becomes a file ``VALUE.jsonl``.

    Raises:
        DataError: FT220, rows lack the column; every FT227, a value that cannot name a file, rows of several
            formats, or a column whose name a format has taken.
    """
    rows = rows_by_label(labels_of(examples, column, key="--column"))
    where = f"--column={column}"
    problems = [
        _problem(f"the value {value!r:.120} cannot be the name of a file", where, "rename it in the rows")
        for value in rows
        if not _names_a_file(value)
    ]
    shapes = {_shape(example) for example in examples}
    if ("text" in shapes and len(shapes) > 1) or {"alpaca", "chat"} <= shapes:
        what = "the dataset holds rows of several formats, and a file holds rows of one"
        problems.append(_problem(what, where, "separate the rows of each format by themselves"))
    taken = sorted({name for example in examples for name in example.columns} & _ROLES)
    if taken:
        what = f"rows have the columns {taken!r}, which a file of rows reads as its content"
        problems.append(_problem(what, where, "rename these columns in the rows"))
    if problems:
        raise DataError(problems)
    alpaca = "alpaca" in shapes
    return {
        f"{value}.jsonl": "".join(
            json.dumps(_fields(examples[row], alpaca=alpaca), ensure_ascii=False) + "\n" for row in own
        ).encode()
        for value, own in rows.items()
    }


def _shape(example: Example) -> str:
    if example.text is not None:
        return "text"
    if example.input is not None:
        return "alpaca"
    return "pair" if [turn.role for turn in example.turns] == ["user", "assistant"] else "chat"


def _fields(example: Example, *, alpaca: bool) -> dict[str, Any]:
    if example.text is not None:
        content: dict[str, Any] = {"text": example.text}
    elif alpaca:
        question, answer = (turn.content for turn in example.turns)
        content = {"instruction": question, "output": answer}
        if example.input is not None:
            content["instruction"] = question.removesuffix(f"\n\n{example.input}")
            content["input"] = example.input
    else:
        content = {"messages": [{"role": turn.role, "content": turn.content} for turn in example.turns]}
    return {"id": example.id, **content, **example.columns}


def _names_a_file(value: str) -> bool:
    plain = value.isprintable() and not value.startswith(".") and "/" not in value and "\\" not in value
    return plain and 0 < len(value.encode()) <= _LONGEST_NAME


def _problem(what: str, where: str, fix: str) -> Problem:
    return Problem(code="FT227", what=what, where=where, fix=fix)
