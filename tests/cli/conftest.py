"""A federation of seconds, run once through the command line."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from fedtune import cli


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """A completed run and what was printed."""

    path: Path
    overrides: list[str]
    stdout: str
    stderr: str


def write_rows(path: Path) -> Path:
    """Three unequal sites."""
    rows = [
        {
            "instruction": f"Define {site} {number}",
            "output": f"It is {site} grade {number % 3}.",
            "site": site,
        }
        for site, count in {"ear": 10, "eye": 15, "heart": 20}.items()
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_overrides(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> list[str]:
    """Overrides of a run of a second or two, all but its name and folder."""
    rows = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl")
    return [
        f"model.name={tiny_model_dir}",
        "model.quantization=none",
        "model.compute_dtype=float32",
        "data=files",
        f"data.files=[{rows}]",
        "data.max_tokens=96",
        "data.held_out_fraction=0.2",
        "partition=natural",
        "partition.column=site",
        "peft.rank=4",
        "training.steps_per_round=2",
        "training.learning_rate=0.01",
        "training.microbatch_tokens=256",
        "training.threads=1",
        "federation.rounds=2",
        "evaluation.generations=1",
        "evaluation.max_new_tokens=4",
    ]


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_overrides: list[str]) -> TinyRun:
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("runs")
    overrides = [*tiny_overrides, f"runs_dir={folder}", "name=tiny"]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert cli.main(["simulate", "--json", *overrides]) == 0, err.getvalue()
    return TinyRun(path=folder / "tiny", overrides=overrides, stdout=out.getvalue(), stderr=err.getvalue())
