"""From a Parquet file to rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedtune.data.parse import ParsedFile, Row, broken_file, locate, undecodable
from fedtune.errors import Problem

__all__ = ["parse_parquet"]

_BATCH_ROWS = 1024
# What pyarrow raises for damaged files and for values that Python cannot hold.
_DAMAGE = (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, NotImplementedError, MemoryError)


def parse_parquet(path: str, file: Path) -> ParsedFile:
    """Read a Parquet file into rows; problems are in the result.

    Args:
        path: The path as it was given, for the messages.
        file: The same path, ready to open.
    """
    rows: list[Row | Problem] = []
    try:
        with pq.ParquetFile(file) as parquet:
            columns = tuple(parquet.schema_arrow.names)
            repeated = sorted({name for name in columns if columns.count(name) > 1})
            if repeated:
                return broken_file(
                    path,
                    "FT205",
                    f"expected columns with different names, got {repeated!r} more than once",
                    "rename or drop the repeated columns",
                )
            for batch in parquet.iter_batches(batch_size=_BATCH_ROWS):
                rows.extend(_rows(path, batch, first=len(rows) + 1))
    except _DAMAGE as error:
        return broken_file(
            path, "FT205", f"expected a Parquet file, got something else: {error}", "write the file again"
        )
    if not rows:
        return broken_file(
            path, "FT203", "the file has no rows: expected at least one", "check how it was made"
        )
    return ParsedFile(path=path, rows=tuple(rows), columns=columns)


def _rows(path: str, batch: Any, *, first: int) -> list[Row | Problem]:
    try:
        values = batch.to_pylist()
    except _DAMAGE:
        return [_row(path, batch, index, first + index) for index in range(batch.num_rows)]
    return [Row(number=first + index, fields=fields) for index, fields in enumerate(values)]


def _row(path: str, batch: Any, index: int, number: int) -> Row | Problem:
    """One row of a batch of which some cell cannot be converted, so that only its own row is bad."""
    fields: dict[str, object] = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            fields[name] = column[index].as_py()
        except UnicodeDecodeError as error:
            return undecodable(
                path, number, name, f"expected UTF-8 text, got {error.object[:20]!r}: {error.reason}"
            )
        except _DAMAGE as error:
            return Problem(
                code="FT209",
                what=f"expected a value that Python can hold, got {column.type}: {error}",
                where=locate(path, number, name),
                fix="convert the column to text, or drop it",
            )
    checked: Mapping[str, object] = fields
    return Row(number=number, fields=checked)
