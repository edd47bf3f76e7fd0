from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from support.datasets import data_config, labelled, partition_config, question

from fedtune.config.schema import DataConfig, PartitionConfig
from fedtune.data.examples import Example
from fedtune.data.load import dataset_names, load_examples
from fedtune.data.partition import partition
from fedtune.errors import DataError, Problem

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a distribution on the path, as pip would, whose entry points lead to functions of this module."""

    def add(group: str, name: str, function: str) -> None:
        information = tmp_path / "plugin-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[{group}]\n{name} = fedtune_test_plugin:{function}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(sys.modules, "fedtune_test_plugin", sys.modules[__name__])

    return add


def ward(data: DataConfig) -> Iterable[Example]:
    yield question("Q", f"at most {data.max_tokens}", id="1")
    yield question("Q", "A", id="2")


def bad_rows(_: DataConfig) -> Iterable[object]:
    return [question("Q", "A", id="1"), question("Q", " ", id="2"), question("Q", "A", id="1"), {"text": "a"}]


def no_rows(_: DataConfig) -> Iterable[Example]:
    return []


def broken(*_: object) -> Iterable[Example]:
    raise RuntimeError("database is down")


def refusing(_: DataConfig) -> Iterable[Example]:
    raise DataError(Problem(code="FT201", what="no password", where="the ward's database", fix="ask"))


def alternate(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Mapping[str, Sequence[int]]:
    return {"even": range(0, len(examples), 2), "odd": list(range(1, len(examples), 2))[::-1]}


def careless(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Mapping[str, Sequence[int]]:
    return {"a": [0, 1, 1], "b": [1, 99]}


def fractional(
    examples: Sequence[Example], config: PartitionConfig, seed: int
) -> Mapping[str, Sequence[float]]:
    return {"a": [0.0, 1.0, 2.0, 3.0]}


def test_a_dataset_plug_in_gives_its_rows(install: Install) -> None:
    install("fedtune.datasets", "ward", "ward")
    assert dataset_names() == ("hpo", "files", "ward")
    examples = load_examples(data_config(source="ward", max_tokens=99)).examples
    assert [example.response for example in examples] == ["at most 99", "A"]


def test_rows_of_a_dataset_plug_in_are_checked_like_any_other(install: Install) -> None:
    install("fedtune.datasets", "ward", "bad_rows")
    with pytest.raises(DataError) as caught:
        load_examples(data_config(source="ward"))
    assert [(problem.code, problem.where) for problem in caught.value.problems] == [
        ("FT208", "data.source=ward, row 2, field response"),
        ("FT212", "data.source=ward, row 3"),
        ("FT206", "data.source=ward, row 4"),
    ]
    loaded = load_examples(data_config(source="ward", on_bad_row="skip"))
    assert (len(loaded.examples), loaded.skipped_rows) == (1, 3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("no_rows", "FT203: the dataset is empty"),
        ("broken", "FT215: the dataset .*broken failed: RuntimeError: database is down"),
        ("refusing", "FT201: no password"),
        ("not_there", "FT215: the dataset .* failed: AttributeError"),
    ],
)
def test_a_dataset_plug_in_that_fails_is_named(install: Install, function: str, message: str) -> None:
    install("fedtune.datasets", "ward", function)
    with pytest.raises(DataError, match=message):
        load_examples(data_config(source="ward"))


def test_an_unknown_dataset_is_corrected() -> None:
    with pytest.raises(DataError, match=r"FT215: expected one of hpo, files, got 'hop'") as caught:
        load_examples(data_config(source="hop"))
    assert caught.value.problems[0].fix == "did you mean hpo?"


def test_a_partitioner_plug_in_splits_the_rows(install: Install) -> None:
    install("fedtune.partitioners", "alternate", "alternate")
    split = partition(labelled("abcde"), partition_config("alternate"), 0)
    assert split.names == ("even", "odd")
    assert [rows.tolist() for rows in split.indices] == [[0, 2, 4], [1, 3]]
    with pytest.raises(DataError, match=r"FT222: .* got odd \(2\)"):
        partition(labelled("abcde"), partition_config("alternate", min_examples=3), 0)


def test_a_partitioner_plug_in_that_loses_or_repeats_rows_is_refused(install: Install) -> None:
    install("fedtune.partitioners", "careless", "careless")
    with pytest.raises(DataError) as caught:
        partition(labelled("abcd"), partition_config("careless"), 0)
    assert [problem.what.partition("got ")[2] for problem in caught.value.problems] == [
        "1 rows that do not exist",
        "1 rows at two sites or twice at one",
        "2 rows at no site",
    ]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("broken", "RuntimeError: database is down"),
        ("fractional", "TypeError: row positions must be integers"),
    ],
)
def test_a_partitioner_plug_in_that_fails_is_named(install: Install, function: str, message: str) -> None:
    install("fedtune.partitioners", "mine", function)
    with pytest.raises(DataError, match=f"FT223: the partitioner .* failed: {message}"):
        partition(labelled("abcd"), partition_config("mine"), 0)


def test_an_unknown_partitioner_is_corrected() -> None:
    with pytest.raises(DataError, match="FT223: expected one of natural, iid") as caught:
        partition(labelled("ab"), partition_config("dirichelt"), 0)
    assert caught.value.problems[0].fix == "did you mean dirichlet?"
