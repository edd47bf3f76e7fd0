"""Rows that were split into files are the rows that they were."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.datasets import data_config, question

from fedtune.data.examples import Example, Turn
from fedtune.data.load import load_examples
from fedtune.data.separate import separate
from fedtune.errors import DataError

words = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: bool(text.strip()))
wards = st.sampled_from(["north", "süd", "ward 7"])
labels = st.fixed_dictionaries({"ward": wards, "note": st.text(st.characters(codec="utf-8"))})


def pairs(prompt: str, response: str) -> tuple[Turn, ...]:
    return Turn(role="user", content=prompt), Turn(role="assistant", content=response)


plain = st.builds(lambda columns, text: Example(id="", text=text, columns=columns), labels, words)
asked = st.builds(
    lambda columns, *said: Example(id="", turns=pairs(*said), columns=columns), labels, words, words
)
chats = st.builds(
    lambda columns, system, first, second: Example(
        id="", turns=(Turn(role="system", content=system), *first, *second), columns=columns
    ),
    labels,
    words,
    st.builds(pairs, words, words),
    st.builds(pairs, words, words),
)
alpaca = st.builds(
    lambda columns, prompt, context, response: Example(
        id="", turns=pairs(f"{prompt}\n\n{context}", response), columns=columns, input=context
    ),
    labels,
    words,
    words,
    words,
)


@given(
    st.one_of(*(st.lists(rows, min_size=1, max_size=9) for rows in (plain, asked | chats, asked | alpaca)))
)
def test_the_files_hold_the_same_examples(rows: list[Example]) -> None:
    examples = [
        Example(id=f"row {at}", turns=row.turns, text=row.text, columns=row.columns, input=row.input)
        for at, row in enumerate(rows)
    ]
    with TemporaryDirectory() as folder:
        for name, content in separate(examples, "ward").items():
            path = Path(folder) / name
            path.write_bytes(content)
            held = [each for each in examples if each.columns["ward"] == path.stem]
            assert list(load_examples(data_config(path)).examples) == held
        assert {path.stem for path in Path(folder).iterdir()} == {row.columns["ward"] for row in examples}


@pytest.mark.parametrize("value", ["", ".hidden", "..", "a/b", "a\\b", "a\nb", "ü" * 51])
def test_a_value_that_names_no_file_is_refused(value: str) -> None:
    with pytest.raises(DataError) as caught:
        separate([question("Q", "A", ward=value), question("Q", "A", id="b", ward="x/y")], "ward")
    assert [problem.code for problem in caught.value.problems] == ["FT227", "FT227"]


def test_mixed_formats_and_taken_columns_are_refused_together() -> None:
    rows = [question("Q", "A", ward="a", text="x"), Example(id="b", text="t", columns={"ward": "a"})]
    with pytest.raises(DataError) as caught:
        separate(rows, "ward")
    assert [problem.code for problem in caught.value.problems] == ["FT227", "FT227"]


def test_rows_without_the_column_are_named() -> None:
    with pytest.raises(DataError) as caught:
        separate([question("Q", "A", site="a")], "ward")
    assert caught.value.problems[0].code == "FT220"
