"""A site forgets what it remembered of a run that nobody goes on with."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import torch

from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.residual_memory import ResidualMemory
from fedtune.federation.site import WalkPosition
from fedtune.site.tidying import KEPT, forget_old_runs

NOW = datetime.now(UTC)


def remember(folder: Path) -> None:
    WalkPosition(folder, "ear").advance(1, 4)
    OptimizerMemory(folder, "ear").keep(1, {"m": torch.zeros(2)})
    ResidualMemory(folder, "ear").keep(1, {"r": np.zeros(2, np.float32)})


def age(folder: Path, days: float) -> None:
    time = (NOW - timedelta(days=days)).timestamp()
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time, time))


def test_moments_and_residuals_of_an_old_run_are_deleted_and_its_position_stays(tmp_path: Path) -> None:
    for name, days in (("old", 31.0), ("new", 29.0)):
        remember(tmp_path / name)
        age(tmp_path / name, days)
    assert forget_old_runs(tmp_path, NOW) == ["old"]
    assert OptimizerMemory(tmp_path / "old", "ear").before(2) is None
    assert ResidualMemory(tmp_path / "old", "ear").before(2) == {}
    assert WalkPosition(tmp_path / "old", "ear").before(2) == 4
    assert OptimizerMemory(tmp_path / "new", "ear").before(2) is not None
    assert ResidualMemory(tmp_path / "new", "ear").before(2) != {}


def test_one_file_that_was_written_lately_keeps_a_run(tmp_path: Path) -> None:
    remember(tmp_path / "run")
    age(tmp_path / "run", KEPT.days + 5)
    WalkPosition(tmp_path / "run", "ear").advance(2, 8)
    assert forget_old_runs(tmp_path, NOW) == []
    assert OptimizerMemory(tmp_path / "run", "ear").before(2) is not None


def test_where_there_is_nothing_nothing_is_forgotten(tmp_path: Path) -> None:
    assert forget_old_runs(tmp_path / "runs", NOW) == []
    (tmp_path / "a-file").write_text("")
    (tmp_path / "empty").mkdir()
    age(tmp_path / "empty", 90)
    assert forget_old_runs(tmp_path, NOW) == []
