"""``fedtune simulate -m``: all combinations, each in a run of its own, and a table of what they gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedtune import cli
from fedtune.commands.sweep import _job_name

Captured = pytest.CaptureFixture[str]


def adapter(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "adapter" / "adapter_model.safetensors")


def test_every_combination_is_run_under_a_name_of_its_own(
    tiny_run: Any, tiny_overrides: list[str], tmp_path: Path, capsys: Captured
) -> None:
    swept = ["seed=0,1", "training.learning_rate=0.01,0.02"]
    arguments = ["simulate", "-m", "--json", *tiny_overrides, *swept, f"runs_dir={tmp_path}", "name=study"]
    arguments.remove("training.learning_rate=0.01")
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    jobs = result["jobs"]
    assert [job["status"] for job in jobs] == ["completed"] * 4
    assert sorted(job["values"] for job in jobs) == [
        "seed=0,training.learning_rate=0.01",
        "seed=0,training.learning_rate=0.02",
        "seed=1,training.learning_rate=0.01",
        "seed=1,training.learning_rate=0.02",
    ]
    assert len({job["run"] for job in jobs}) == 4
    assert len({job["held_out_loss"]["federated"] for job in jobs}) == 4
    assert all(Path(job["run"]).parent == tmp_path / "study" for job in jobs)
    assert json.loads((tmp_path / "study" / "sweep.json").read_text(encoding="utf-8")) == result
    assert f"{jobs[0]['held_out_loss']['federated']:.4f}" in err
    # The job that has the values of the single run gives its adapter, to the last bit.
    same = next(Path(job["run"]) for job in jobs if job["values"] == "seed=0,training.learning_rate=0.01")
    single, swept_one = adapter(tiny_run.path), adapter(same)
    assert single.keys() == swept_one.keys()
    assert all(np.array_equal(single[name], swept_one[name]) for name in single)


def test_a_job_that_fails_is_named_and_the_others_go_on(
    tiny_overrides: list[str], tmp_path: Path, capsys: Captured
) -> None:
    missing = tmp_path / "missing.jsonl"
    files = next(text for text in tiny_overrides if text.startswith("data.files=")).partition("=")[2]
    overrides = [text for text in tiny_overrides if not text.startswith("data.files=")]
    arguments = ["simulate", "-m", "--json", *overrides, f"data.files=[{missing}],{files}"]
    assert cli.main([*arguments, f"runs_dir={tmp_path}", "name=study"]) == 3
    jobs = json.loads(capsys.readouterr().out)["jobs"]
    assert [job["status"] for job in jobs] == ["failed", "completed"]
    assert "FT2" in jobs[0]["error"]
    assert jobs[0]["exit_code"] == 3


def test_nothing_is_run_when_one_combination_is_wrong(
    tiny_overrides: list[str], tmp_path: Path, capsys: Captured
) -> None:
    arguments = ["simulate", "-m", *tiny_overrides, f"runs_dir={tmp_path}/none"]
    assert cli.main([*arguments, "seed=0,-1", "training.microbatch_tokens=256,8"]) == 2
    err = capsys.readouterr().err
    assert "FT103: seed is -1" in err
    assert "FT105" in err
    assert not (tmp_path / "none").exists()


def test_an_unknown_key_with_several_values_is_named(capsys: Captured) -> None:
    assert cli.main(["simulate", "-m", "lr=1e-3,2e-3"]) == 2
    assert "did you mean training.learning_rate?" in capsys.readouterr().err


@pytest.mark.parametrize("override", ["name=a,b", "runs_dir=x,y", "resume=true,false"])
def test_what_belongs_to_the_whole_sweep_has_one_value(override: str, capsys: Captured) -> None:
    assert cli.main(["simulate", "-m", "name=study", "seed=0,1", override]) == 2
    assert "FT106" in capsys.readouterr().err


def test_a_launcher_that_is_not_installed_is_named(
    tiny_overrides: list[str], tmp_path: Path, capsys: Captured
) -> None:
    arguments = ["simulate", "-m", *tiny_overrides, f"runs_dir={tmp_path}", "seed=0,1"]
    assert cli.main([*arguments, "hydra/launcher=not_installed"]) == 2
    err = capsys.readouterr().err
    assert "FT108" in err
    assert "hydra/launcher" in err
    assert "Traceback" not in err


def test_a_sweep_is_not_put_into_a_single_run(tiny_run: Any, capsys: Captured) -> None:
    before = sorted(tiny_run.path.iterdir())
    assert cli.main(["simulate", "-m", *tiny_run.overrides, "seed=0,1"]) == 8
    assert "FT701" in capsys.readouterr().err
    assert sorted(tiny_run.path.iterdir()) == before


@pytest.mark.parametrize(
    ("number", "values", "name"),
    [
        (0, "seed=0,training.learning_rate=0.01", "00_seed=0_learning_rate=0.01"),
        (7, "", "07"),
        (12, "data.files=[../a b.csv]", "12_files=_.._a_b.csv"),
        (3, "model.name=package:x/y.gguf", "03_name=package_x_y.gguf"),
    ],
)
def test_a_jobs_name_is_a_folder_name(number: int, values: str, name: str) -> None:
    assert _job_name(number, values) == name
