"""From a file's bytes to rows: JSON Lines, JSON arrays and CSV, every problem kept beside the good rows.

A problem of one row (a broken line, bytes that are not UTF-8) takes that row's place in the order of the
file. A problem of the file as a whole (missing, empty, a CSV whose quotes do not close) stands apart: after
it nobody knows which rows are there, so it can never be skipped.

Row numbers count from 1: lines of a JSON Lines file, elements of a JSON array, rows of a Parquet file. In a
CSV file the header is row 1, as a spreadsheet counts.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedtune.errors import Problem

__all__ = [
    "EXTENSIONS",
    "ParsedFile",
    "Row",
    "broken_file",
    "describe",
    "locate",
    "parse_file",
    "undecodable",
]

EXTENSIONS = (".jsonl", ".json", ".csv", ".parquet")
_BOM = b"\xef\xbb\xbf"
_LARGEST_CSV_FIELD = 2**31 - 1  # the csv module refuses fields over 131,072 characters unless told otherwise


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row as the file holds it: ``fields`` maps a column to whatever JSON or Arrow value it has."""

    number: int
    fields: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class ParsedFile:
    """A file's content.

    Attributes:
        path: The path as it was given.
        rows: In file order; a row that could not be read is its problem instead.
        problems: What is wrong with the file as a whole.
        columns: The header of a CSV or Parquet file; None where each row names its own fields.
    """

    path: str
    rows: tuple[Row | Problem, ...] = ()
    problems: tuple[Problem, ...] = ()
    columns: tuple[str, ...] | None = None


def locate(path: str, row: int | None = None, field: str | None = None) -> str:
    """Where a problem is, in the words of every data error: ``FILE, row N, field X``."""
    parts = [path]
    if row is not None:
        parts.append(f"row {row}")
    if field is not None:
        parts.append(f"field {field}")
    return ", ".join(parts)


def parse_file(path: str) -> ParsedFile:
    """Read one file into rows, by its extension.

    Never raises for anything the file holds: problems are in the result.

    Args:
        path: A .jsonl, .json, .csv or .parquet file; the case of the extension does not matter.
    """
    extension = Path(path).suffix.lower()
    file = Path(os.path.expanduser(path))  # Path.expanduser raises for unknown users
    if extension not in EXTENSIONS and file.exists():
        return broken_file(
            path,
            "FT202",
            f"the extension {extension!r} is not one of {', '.join(EXTENSIONS)}",
            "convert the file, or rename it when its content is one of these",
        )
    try:
        if extension == ".parquet":
            from fedtune.data.parquet import parse_parquet  # noqa: PLC0415 - pyarrow takes long to import

            with file.open("rb") as stream:  # says what is wrong with the path better than pyarrow does
                has_content = bool(stream.read(1))
            return parse_parquet(path, file) if has_content else _empty(path)
        content = file.read_bytes()
    except FileNotFoundError:
        return broken_file(path, "FT201", "the file does not exist", "check the path in data.files")
    except (OSError, ValueError) as error:
        return broken_file(
            path, "FT201", f"the file cannot be read: {error}", "check the path and its permissions"
        )
    offset = len(_BOM) if content.startswith(_BOM) else 0
    text = content[offset:]
    if not text.strip():
        return _empty(path)
    parse = {".jsonl": _parse_jsonl, ".json": _parse_json, ".csv": _parse_csv}[extension]
    return parse(path, text, offset)


def describe(value: object) -> str:
    """A value in a message: its text when that is short, else what kind it is."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "an array"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:37] + "...")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"the number {value}" if isinstance(value, int | float) else f"a {type(value).__name__}"


def broken_file(path: str, code: str, what: str, fix: str, *, row: int | None = None) -> ParsedFile:
    """A file of which nothing can be used, and why."""
    return ParsedFile(path=path, problems=(Problem(code=code, what=what, where=locate(path, row), fix=fix),))


def undecodable(path: str, row: int | None, field: str | None, what: str) -> Problem:
    """The problem of a text that is not valid Unicode."""
    return Problem(
        code="FT204", what=what, where=locate(path, row, field), fix="save the file again as UTF-8 text"
    )


def _empty(path: str) -> ParsedFile:
    return broken_file(path, "FT203", "the file is empty: expected at least one row", "check how it was made")


def _bad_bytes(path: str, row: int | None, error: UnicodeDecodeError, start: int) -> Problem:
    wide = start == 0 and error.object[:2] in (b"\xff\xfe", b"\xfe\xff")
    return undecodable(
        path,
        row,
        None,
        f"expected UTF-8, got the byte 0x{error.object[error.start]:02x} at offset {start + error.start} of "
        f"the file" + (" (it looks like UTF-16)" if wide else ""),
    )


def _json_problem(path: str, row: int | None, error: Exception) -> Problem:
    what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    if isinstance(error, json.JSONDecodeError):
        place = f"line {error.lineno}, " if row is None else ""
        what = f"{error.msg} at {place}column {error.colno if row is None else error.pos + 1}"
    return Problem(
        code="FT205",
        what=f"expected JSON, got something else: {what}",
        where=locate(path, row),
        fix="repair this place; one JSON object a line in .jsonl, one array of objects in .json",
    )


def _row(path: str, number: int, value: object) -> Row | Problem:
    if isinstance(value, dict):
        return Row(number=number, fields=value)
    return Problem(
        code="FT206",
        what=f"expected a JSON object, got {describe(value)}",
        where=locate(path, number),
        fix='write the row as {"column": value, ...}; a file that is one array of rows is named .json',
    )


def _parse_jsonl(path: str, content: bytes, offset: int) -> ParsedFile:
    rows: list[Row | Problem] = []
    start = offset
    for number, line in enumerate(io.BytesIO(content), start=1):
        try:
            if line.strip():
                rows.append(_row(path, number, json.loads(line.decode("utf-8"))))
        except UnicodeDecodeError as error:
            rows.append(_bad_bytes(path, number, error, start))
        except (ValueError, RecursionError) as error:
            if not rows and line.strip() == b"[":
                return broken_file(
                    path,
                    "FT205",
                    "expected one JSON object a line, got a JSON array over many lines",
                    "name the file .json",
                    row=number,
                )
            rows.append(_json_problem(path, number, error))
        start += len(line)
    return ParsedFile(path=path, rows=tuple(rows))


def _parse_json(path: str, content: bytes, offset: int) -> ParsedFile:
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        return ParsedFile(path=path, problems=(_bad_bytes(path, None, error, offset),))
    except (ValueError, RecursionError) as error:
        if getattr(error, "msg", "") == "Extra data":
            return broken_file(
                path,
                "FT205",
                f"expected one JSON array, got more after its end: {error}",
                "name the file .jsonl when it holds one JSON object a line",
            )
        return ParsedFile(path=path, problems=(_json_problem(path, None, error),))
    if not isinstance(value, list):
        return broken_file(
            path,
            "FT205",
            f"expected a JSON array of objects, got {describe(value)}",
            "write the rows as [{...}, {...}], or one object a line in a .jsonl file",
        )
    if not value:
        return _empty(path)
    return ParsedFile(
        path=path, rows=tuple(_row(path, number, item) for number, item in enumerate(value, start=1))
    )


class _Lines:
    """Feeds the csv module line by line and remembers how many bytes it has taken."""

    def __init__(self, content: bytes) -> None:
        self._stream = io.BytesIO(content)
        self.taken = 0

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            self.taken += len(line)
            # Bytes that are not UTF-8 pass as lone surrogates, so that the row's cells stay countable.
            yield line.decode("utf-8", "surrogateescape")


def _parse_csv(path: str, content: bytes, offset: int) -> ParsedFile:
    lines = _Lines(content)
    rows: list[Row | Problem] = []
    previous_limit = csv.field_size_limit(_LARGEST_CSV_FIELD)
    try:
        # strict: an open quote would otherwise swallow every row to the end of the file without a word
        reader = csv.reader(iter(lines), strict=True)
        header: list[str] = []
        start = 0
        for number, cells in enumerate(reader, start=1):
            record, start = content[start : lines.taken], lines.taken
            try:
                record.decode("utf-8")
            except UnicodeDecodeError as error:
                problem = _bad_bytes(path, number, error, offset + start - len(record))
                if not header:
                    return ParsedFile(path=path, problems=(problem,))
                rows.append(problem)
                continue
            if not header:
                header = cells
            elif cells:
                rows.append(_csv_row(path, number, header, cells))
    except csv.Error as error:
        return broken_file(
            path,
            "FT205",
            f"expected comma-separated values, got something else by line {reader.line_num}: {error}",
            "quote cells that hold commas, quotes or line breaks, and double the quotes inside them",
        )
    finally:
        csv.field_size_limit(previous_limit)
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        return broken_file(
            path,
            "FT205",
            f"expected columns with different names, got {repeated!r} more than once",
            "rename or drop the repeated columns",
            row=1,
        )
    if not rows:
        return broken_file(
            path, "FT203", "the file has a header and no rows: expected at least one", "check how it was made"
        )
    return ParsedFile(path=path, rows=tuple(rows), columns=tuple(header))


def _csv_row(path: str, number: int, header: list[str], cells: list[str]) -> Row | Problem:
    if len(cells) == len(header):
        return Row(number=number, fields=dict(zip(header, cells, strict=True)))
    return Problem(
        code="FT205",
        what=f"expected {len(header)} cells as in the header, got {len(cells)}",
        where=locate(path, number),
        fix="quote cells that hold commas or line breaks",
    )
