from __future__ import annotations

import csv
import itertools
import json
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.datasets import data_config

from fedtune.data.examples import Example, Turn
from fedtune.data.load import load_examples
from fedtune.errors import DataError, Problem

ALPACA = {"instruction": "Add", "input": "1 and 2", "output": "3", "site": "north", "id": "sum"}
QUESTION = (Turn(role="user", content="Add\n\n1 and 2"), Turn(role="assistant", content="3"))


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, *rows: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    return path


def problems_of(path: Path, **changes: object) -> list[tuple[str, str]]:
    """(code, where without the file's path) of everything that is wrong."""
    with pytest.raises(DataError) as caught:
        load_examples(data_config(path, **changes))
    return [
        (problem.code, problem.where.removeprefix(str(path)).lstrip(", "))
        for problem in caught.value.problems
    ]


def the_problem(path: Path, **changes: object) -> Problem:
    with pytest.raises(DataError) as caught:
        load_examples(data_config(path, **changes))
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


@pytest.mark.parametrize("extension", [".jsonl", ".json", ".csv", ".parquet", ".JSONL"])
def test_every_file_format_gives_the_same_example(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"rows{extension}"
    match extension:
        case ".json":
            path.write_text(json.dumps([ALPACA]))
        case ".csv":
            write_csv(path, list(ALPACA), list(ALPACA.values()))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist([ALPACA]), path)
        case _:
            write_jsonl(path, ALPACA)
    expected = Example(id="sum", turns=QUESTION, columns={"site": "north"}, input="1 and 2")
    assert load_examples(data_config(path)).examples == (expected,)


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"instruction": "Q", "output": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"instruction": "Q", "input": "", "output": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"instruction": "Q", "input": None, "output": "A"}, [("user", "Q"), ("assistant", "A")]),
        ({"prompt": "Q", "response": "A"}, [("user", "Q"), ("assistant", "A")]),
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "A"},
                ]
            },
            [("system", "S"), ("user", "Q"), ("assistant", "A")],
        ),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            [("user", "Q"), ("assistant", "A")],
        ),
        (
            {
                "messages": [
                    {"role": "developer", "content": " "},
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "A"},
                ]
            },
            [("user", "Q"), ("assistant", "A")],
        ),
    ],
)
def test_every_row_format_is_recognised(
    tmp_path: Path, row: dict[str, object], turns: list[tuple[str, str]]
) -> None:
    (example,) = load_examples(data_config(write_jsonl(tmp_path / "rows.jsonl", row))).examples
    assert [(turn.role, turn.content) for turn in example.turns] == turns
    assert example.text is None


def test_plain_text_has_no_turns(tmp_path: Path) -> None:
    (example,) = load_examples(
        data_config(write_jsonl(tmp_path / "rows.jsonl", {"text": "T", "n": 3}))
    ).examples
    assert (example.turns, example.text, example.columns) == ((), "T", {"n": "3"})


def test_messages_in_a_csv_cell_are_read_as_json(tmp_path: Path) -> None:
    messages = json.dumps([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
    path = write_csv(tmp_path / "rows.csv", ["messages"], [messages])
    assert load_examples(data_config(path)).examples[0].response == "A"


def test_messages_of_a_parquet_file_may_have_null_fields(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Q", "from": None}, {"role": "assistant", "content": "A"}]}
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert load_examples(data_config(tmp_path / "rows.parquet")).examples[0].response == "A"


def test_renamed_columns_are_read_and_are_no_labels(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"question": "Q", "reply": "A", "key": 7, "ward": "b"})
    renames = {"prompt": "question", "response": "reply", "id": "key"}
    (example,) = load_examples(data_config(path, columns=renames)).examples
    assert (example.id, example.prompt[0].content, example.response) == ("7", "Q", "A")
    assert example.columns == {"ward": "b"}


def test_an_alpaca_file_with_a_text_column_is_read_as_alpaca(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"instruction": "Q", "output": "A", "text": "Q A"})
    assert load_examples(data_config(path)).examples[0].columns == {"text": "Q A"}


def test_columns_become_strings_and_nested_ones_are_left_out(tmp_path: Path) -> None:
    row = {"text": "T", "n": 1, "x": 0.5, "ok": True, "no": None, "list": [1], "s": "é"}
    (example,) = load_examples(data_config(write_jsonl(tmp_path / "rows.jsonl", row))).examples
    assert example.columns == {"n": "1", "x": "0.5", "ok": "true", "s": "é"}


def test_a_row_without_an_id_is_named_by_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b", "id": null}\n')
    assert [example.id for example in load_examples(data_config(path)).examples] == [f"{path}:1", f"{path}:3"]


def test_rows_of_a_csv_file_are_numbered_as_a_spreadsheet_does(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "rows.csv", ["text"], ["one\nrow on\nthree lines"], [" "])
    assert problems_of(path) == [("FT208", "row 3, field text")]


def test_all_problems_of_all_files_are_reported_at_once(tmp_path: Path) -> None:
    first = tmp_path / "first.jsonl"
    first.write_bytes(
        b'{"instruction": "Q", "output": "A", "id": 1}\n'
        b'{"instruction": "Q", "output": " \\n"}\n'
        b'{"instruction": 5, "output": null}\n'
        b'{"instruction": "Q"}\n'
        b'{"instruction": "Q", "output": "\xff"}\n'
        b"[1, 2]\n"
        b'{"instruction": "Q",\n'
        b'{"instruction": "Q", "output": "A", "id": "1"}\n'
        b'{"instruction": "Q", "output": "\\ud800"}\n'
        b'{"instruction": "Q", "output": "A", "id": [2]}\n'
    )
    second = tmp_path / "second.csv"
    second.write_text("instruction,output\nQ,A,B\n")
    (tmp_path / "third.txt").write_text("a")
    with pytest.raises(DataError) as caught:
        load_examples(data_config(first, second, tmp_path / "third.txt", tmp_path / "fourth"))
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [
        ("FT202", f"{tmp_path}/third.txt"),
        ("FT201", f"{tmp_path}/fourth"),
        ("FT208", f"{first}, row 2, field output"),
        ("FT209", f"{first}, row 3, field instruction"),
        ("FT208", f"{first}, row 3, field output"),
        ("FT207", f"{first}, row 4, field output"),
        ("FT204", f"{first}, row 5"),
        ("FT206", f"{first}, row 6"),
        ("FT205", f"{first}, row 7"),
        ("FT212", f"{first}, row 8, field id"),
        ("FT204", f"{first}, row 9, field output"),
        ("FT209", f"{first}, row 10, field id"),
        ("FT205", f"{second}, row 2"),
    ]


def test_skip_leaves_bad_rows_out_and_counts_them(tmp_path: Path) -> None:
    path = write_jsonl(
        tmp_path / "rows.jsonl",
        {"instruction": "Q", "output": "A", "id": "x"},
        {"instruction": " ", "output": " "},
        {"instruction": "Q2", "output": "A2", "id": "x"},
        {"instruction": "Q3", "output": "A3"},
    )
    loaded = load_examples(data_config(path, on_bad_row="skip"))
    assert [example.response for example in loaded.examples] == ["A", "A3"]
    assert loaded.skipped_rows == 2
    assert [problem.code for problem in loaded.skipped] == ["FT208", "FT208", "FT212"]


def test_skip_refuses_when_no_row_is_left(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"text": ""}, {"text": " "})
    assert problems_of(path, on_bad_row="skip")[1:] == [
        ("FT208", "row 1, field text"),
        ("FT208", "row 2, field text"),
    ]
    with pytest.raises(DataError, match=r"FT213: expected at least one usable row, got none; 2 bad rows"):
        load_examples(data_config(path, on_bad_row="skip"))


@pytest.mark.parametrize(
    ("extension", "content"),
    [
        (".parquet", b""),
        *itertools.product([".jsonl", ".json", ".csv"], [b"", b"\n \n", b"\xef\xbb\xbf"]),
    ],
)
def test_an_empty_file_is_refused_even_when_bad_rows_are_skipped(
    tmp_path: Path, extension: str, content: bytes
) -> None:
    path = tmp_path / f"empty{extension}"
    path.write_bytes(content)
    problem = the_problem(path, on_bad_row="skip")
    assert problem.code == "FT203"
    assert problem.where == str(path)


def test_files_with_a_header_and_no_rows_are_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "no.parquet")
    assert the_problem(tmp_path / "no.parquet").code == "FT203"
    assert the_problem(write_csv(tmp_path / "no.csv", ["text"])).code == "FT203"
    (tmp_path / "no.json").write_text("[]")
    assert the_problem(tmp_path / "no.json").code == "FT203"


@pytest.mark.parametrize("form", ["auto", "alpaca"])
def test_a_csv_with_a_missing_column_is_one_problem_that_names_it(tmp_path: Path, form: str) -> None:
    path = write_csv(tmp_path / "rows.csv", ["instruction", "inptu"], ["Q", "A"], ["Q", "B"])
    problem = the_problem(path, format=form, on_bad_row="skip")
    assert (problem.code, problem.where) == ("FT207", f"{path}, row 1, field output")
    assert "['output'] is missing; got ['instruction', 'inptu']" in problem.what


def test_a_parquet_file_with_a_missing_column_names_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["Q"]}), tmp_path / "rows.parquet")
    problem = the_problem(tmp_path / "rows.parquet")
    assert (problem.code, problem.where) == ("FT207", f"{tmp_path}/rows.parquet, field response")


def test_columns_that_fit_no_format_are_listed(tmp_path: Path) -> None:
    problem = the_problem(write_jsonl(tmp_path / "rows.jsonl", {"frage": "Q", "antwort": "A"}))
    assert problem.code == "FT214"
    assert "got ['frage', 'antwort']" in problem.what


def test_a_csv_split_by_semicolons_is_told_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction;output\nQ;A\n")
    assert "the cells look separated by ';'" in the_problem(path).fix


def test_a_bad_first_row_does_not_hide_the_format_of_the_rest(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"prompt": "Q"}, {"prompt": "Q", "response": "A"})
    assert problems_of(path) == [("FT207", "row 1, field response")]


@pytest.mark.parametrize(("extension", "row"), [(".jsonl", "row 2"), (".csv", "row 3"), (".json", "")])
def test_invalid_utf8_is_reported_with_its_byte_offset(tmp_path: Path, extension: str, row: str) -> None:
    content = {
        ".jsonl": b'{"text": "a"}\n{"text": "\xe9"}\n',
        ".csv": b"text\na\n\xe9\n",
        ".json": b'[{"text": "\xe9"}]',
    }[extension]
    path = tmp_path / f"rows{extension}"
    path.write_bytes(b"\xef\xbb\xbf" + content)
    problem = the_problem(path)
    assert (problem.code, problem.where) == ("FT204", f"{path}, {row}".rstrip(", "))
    assert f"got the byte 0xe9 at offset {3 + content.index(0xE9)} of the file" in problem.what


def test_invalid_utf8_in_a_parquet_cell_costs_only_its_row(tmp_path: Path) -> None:
    cells = pa.array([b"good", b"\xff\xfe", b"fine"]).cast(pa.binary())
    text = pa.Array.from_buffers(pa.string(), 3, cells.buffers())
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": text}), path)
    assert problems_of(path) == [("FT204", "row 2, field text")]
    assert [row.response for row in load_examples(data_config(path, on_bad_row="skip")).examples] == [
        "good",
        "fine",
    ]


def test_a_utf16_file_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes('[{"text": "a"}]'.encode("utf-16"))
    assert "it looks like UTF-16" in the_problem(path).what


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text\na\n", encoding="utf-8-sig")
    assert load_examples(data_config(path)).examples[0].text == "a"


def test_an_unclosed_quote_in_a_csv_file_never_swallows_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\n"a\nb\nc\n')
    problem = the_problem(path, on_bad_row="skip")
    assert problem.code == "FT205"
    assert "by line 4" in problem.what


def test_a_column_name_that_repeats_is_refused(tmp_path: Path) -> None:
    assert the_problem(write_csv(tmp_path / "rows.csv", ["text", "text"], ["a", "b"])).code == "FT205"
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "rows.parquet")
    assert the_problem(tmp_path / "rows.parquet").code == "FT205"


def test_files_with_the_wrong_extension_are_told_the_right_one(tmp_path: Path) -> None:
    lines = tmp_path / "lines.json"
    lines.write_text('{"text": "a"}\n{"text": "b"}\n')
    assert the_problem(lines).fix.startswith("name the file .jsonl")
    array = tmp_path / "array.jsonl"
    array.write_text('[\n  {"text": "a"},\n  {"text": "b"}\n]\n')
    assert the_problem(array).fix == "name the file .json"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], [("FT211", "messages")]),
        ("hello", [("FT209", "messages")]),
        (None, [("FT209", "messages")]),
        ([1], [("FT209", "messages[0]")]),
        ([{"role": "user", "content": "Q"}], [("FT211", "messages")]),
        ([{"role": "assistant", "content": "A"}], [("FT211", "messages")]),
        (
            [{"role": "tool", "content": "Q"}, {"role": "assistant", "content": "A"}],
            [("FT210", "messages[0].role")],
        ),
        (
            [{"role": ["user"], "content": 3}, {"role": "assistant"}, {"content": "A"}],
            [
                ("FT210", "messages[0].role"),
                ("FT209", "messages[0].content"),
                ("FT207", "messages[1].content"),
                ("FT207", "messages[2].role"),
            ],
        ),
        (
            [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " "}],
            [("FT208", "messages[1].content")],
        ),
        (
            [
                {"role": "user", "content": "Q"},
                {"role": "system", "content": "S"},
                {"role": "assistant", "content": "A"},
            ],
            [("FT211", "messages")],
        ),
        ([{"from": "bot", "value": "A"}], [("FT210", "messages[0].from")]),
    ],
)
def test_what_is_wrong_with_a_conversation_is_named_by_its_message(
    tmp_path: Path, messages: object, expected: list[tuple[str, str]]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", {"messages": messages})
    assert problems_of(path) == [(code, f"row 1, field {field}") for code, field in expected]


def test_an_id_that_repeats_across_files_names_its_first_place(tmp_path: Path) -> None:
    first = write_jsonl(tmp_path / "a.jsonl", {"text": "a", "id": "7"})
    second = write_jsonl(tmp_path / "b.jsonl", {"text": "b", "id": 7})
    with pytest.raises(DataError) as caught:
        load_examples(data_config(first, second))
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == ("FT212", f"{second}, row 1, field id")
    assert f"'7', which is the id of {first}, row 1, field id" in problem.what


def test_a_file_that_is_named_twice_is_refused_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "a"}, {"text": "b"})
    with pytest.raises(DataError) as caught:
        load_examples(data_config(path, path))
    assert [problem.where for problem in caught.value.problems] == ["data.files"]


def test_a_misspelled_role_is_corrected(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", {"text": "a"})
    problem = the_problem(path, columns={"respones": "text"})
    assert (problem.code, problem.fix) == ("FT218", "did you mean response?")


def test_no_files_a_folder_and_a_path_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="FT201: expected at least one file"):
        load_examples(data_config())
    folder = tmp_path / "folder.json"
    folder.mkdir()
    assert the_problem(folder).code == "FT201"
    for path in ("nul\0.json", "~nobody-here/rows.csv", "rows", ""):
        assert the_problem(Path(path)).code in ("FT201", "FT202")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"text": ' + "1" * 5000 + "}", "nonsense"])
@pytest.mark.parametrize("extension", [".json", ".jsonl"])
def test_json_that_python_cannot_hold_is_a_problem_not_a_crash(
    tmp_path: Path, extension: str, content: str
) -> None:
    path = tmp_path / f"rows{extension}"
    path.write_text(content)
    assert the_problem(path).code == "FT205"


@pytest.mark.parametrize("extension", [".jsonl", ".json", ".csv", ".parquet"])
def test_a_row_of_200_000_characters_loads_fast(tmp_path: Path, extension: str) -> None:
    rows = [{"instruction": "x" * 200_000, "output": "y" * 200_000}]
    path = tmp_path / f"rows{extension}"
    match extension:
        case ".json":
            path.write_text(json.dumps(rows))
        case ".csv":
            write_csv(path, list(rows[0]), list(rows[0].values()))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case _:
            write_jsonl(path, *rows)
    limit = csv.field_size_limit()
    started = time.perf_counter()
    (example,) = load_examples(data_config(path)).examples
    assert time.perf_counter() - started < 2
    assert len(example.response) == 200_000
    assert csv.field_size_limit() == limit
