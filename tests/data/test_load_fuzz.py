"""Whatever a file holds, loading gives examples or a DataError, and never anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.datasets import data_config

from fedtune.data.examples import Example
from fedtune.data.load import LoadedData, load_examples
from fedtune.errors import DataError

FORMATS = ("auto", "alpaca", "prompt_response", "messages", "text")
COLUMNS = (
    "instruction",
    "input",
    "output",
    "prompt",
    "response",
    "messages",
    "conversations",
    "text",
    "id",
    "site",
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
MESSAGE = st.dictionaries(
    st.sampled_from(["role", "content", "from", "value"]),
    st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", " "]) | JSON,
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), JSON | st.lists(MESSAGE | JSON, max_size=3), max_size=5)
CELL = st.sampled_from([*(column.encode() for column in COLUMNS), b",", b'"', b"\n", b"\r", b"\0", b"\xff"])
FRAGMENT = st.sampled_from(
    [
        b'{"text": ',
        b'"a"',
        b"}",
        b"\n",
        b"[",
        b"]",
        b", ",
        b"\xff",
        b"1e999",
        b"null",
        b"\xef\xbb\xbf",
        b'"\\ud800"',
    ]
)

# The folder is shared by all draws of a test, which overwrite one file in it.
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def outcome(path: Path, form: str, on_bad_row: str) -> LoadedData | DataError:
    try:
        return load_examples(data_config(path, format=form, on_bad_row=on_bad_row))
    except DataError as error:
        return error


def loads_or_is_refused(path: Path, form: str, on_bad_row: str) -> None:
    loaded = outcome(path, form, on_bad_row)
    if isinstance(loaded, DataError):
        assert all(problem.code.startswith("FT2") and problem.fix for problem in loaded.problems)
        assert all(problem.where.startswith((str(path), "data.files")) for problem in loaded.problems)
        str(loaded).encode("utf-8")
        return
    assert loaded.examples
    assert len({example.id for example in loaded.examples}) == len(loaded.examples)
    assert loaded.skipped_rows <= len(loaded.skipped)
    for example in loaded.examples:
        is_usable(example)


def is_usable(example: Example) -> None:
    assert example.response.strip()
    texts = [turn.content for turn in example.turns]
    for text in (example.id, *texts, example.text or "", *example.columns.values()):
        text.encode("utf-8")


@pytest.mark.parametrize("extension", [".jsonl", ".json", ".csv", ".parquet", ".txt"])
@fuzz
@given(
    content=st.binary() | st.lists(CELL).map(b"".join) | st.lists(FRAGMENT).map(b"".join),
    form=st.sampled_from(FORMATS),
    on_bad_row=st.sampled_from(["refuse", "skip"]),
)
def test_any_bytes_load_or_are_refused_with_a_data_error(
    tmp_path: Path, extension: str, content: bytes, form: str, on_bad_row: str
) -> None:
    path = tmp_path / f"rows{extension}"
    path.write_bytes(content)
    loads_or_is_refused(path, form, on_bad_row)


def as_lines(rows: list[object]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def as_array(rows: list[object]) -> bytes:
    return json.dumps(rows).encode()


@pytest.mark.parametrize(("extension", "write"), [(".jsonl", as_lines), (".json", as_array)])
@fuzz
@given(
    rows=st.lists(ROW | JSON, max_size=5),
    form=st.sampled_from(FORMATS),
    on_bad_row=st.sampled_from(["refuse", "skip"]),
)
def test_any_json_rows_load_or_are_refused_with_a_data_error(
    tmp_path: Path,
    extension: str,
    write: Callable[[list[object]], bytes],
    rows: list[object],
    form: str,
    on_bad_row: str,
) -> None:
    path = tmp_path / f"rows{extension}"
    path.write_bytes(write(rows))
    loads_or_is_refused(path, form, on_bad_row)


@fuzz
@given(
    place=st.integers(min_value=0, max_value=10_000),
    change=st.binary(min_size=1, max_size=8),
    cut=st.integers(min_value=0, max_value=40),
)
def test_a_damaged_parquet_file_loads_or_is_refused_with_a_data_error(
    tmp_path: Path, place: int, change: bytes, cut: int
) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"prompt": f"question {n}", "response": "é" * n, "n": n} for n in range(1, 20)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    content = bytearray(path.read_bytes())
    start = place % len(content)
    content[start : start + len(change)] = change
    path.write_bytes(bytes(content[: len(content) - cut] if cut < 20 else content))
    loads_or_is_refused(path, "prompt_response", "refuse")


@fuzz
@given(rows=st.lists(st.lists(st.text(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_any_text_in_csv_cells_is_read_back_unchanged(tmp_path: Path, rows: list[list[str]]) -> None:
    path = tmp_path / "rows.csv"
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_text("\n".join(["prompt,response,site", *quoted]), encoding="utf-8", newline="")
    loaded = outcome(path, "auto", "skip")
    if isinstance(loaded, DataError):
        assert loaded.problems[0].code == "FT213"
        assert all(not row[0].strip() or not row[1].strip() for row in rows)
        return
    read = [
        [example.prompt[0].content, example.response, example.columns["site"]] for example in loaded.examples
    ]
    assert read == [row for row in rows if row[0].strip() and row[1].strip()]
