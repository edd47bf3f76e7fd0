"""``fedtune data split``: one file of rows for each value of a column, and nothing written over."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tiny_federation import SIZES, write_rows

from fedtune import cli


def test_each_value_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = write_rows(tmp_path / "rows.jsonl"), tmp_path / "new" / "sites"
    assert cli.main(["data", "split", str(rows), "--column", "site", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == {f"{site}.jsonl": n for site, n in SIZES.items()}
    for site, count in SIZES.items():
        lines = (out / f"{site}.jsonl").read_text(encoding="utf-8").splitlines()
        assert len(lines) == count
        assert {json.loads(line)["site"] for line in lines} == {site}


def test_the_hospitals_of_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "split", "hpo", "--column", "site", "--out", str(tmp_path / "rows")]) == 0
    assert "neurology.jsonl" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    assert cli.main(["data", "split", str(rows), "--column", "site", "--out", str(tmp_path)]) == 8
    assert "FT740" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [rows]


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "split", "hop", "--column", "site", "--out", str(tmp_path / "x")]) == 3
    assert "FT215" in capsys.readouterr().err
