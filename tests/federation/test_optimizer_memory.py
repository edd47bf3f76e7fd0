"""What a site's optimizer remembers: by round, carried over, and no longer than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedtune.errors import RunError
from fedtune.federation.optimizer_memory import OptimizerMemory


def moments(**values: float) -> dict[str, torch.Tensor]:
    return {f"{name}/exp_avg": torch.full((2,), value) for name, value in values.items()}


def read(memory: OptimizerMemory, round_number: int) -> dict[str, float] | None:
    found = memory.before(round_number)
    return None if found is None else {name: float(value[0]) for name, value in found.items()}


def test_a_round_goes_on_from_the_last_one_before_it_however_often_it_is_asked_for(tmp_path: Path) -> None:
    memory = OptimizerMemory(tmp_path, "a/b")
    assert memory.before(1) is None
    memory.keep(1, moments(A=1))
    memory.keep(4, moments(A=4))
    assert read(memory, 4) == {"A/exp_avg": 1.0}
    assert read(memory, 9) == {"A/exp_avg": 4.0}
    memory.keep(2, moments(A=2))
    assert read(memory, 9) == {"A/exp_avg": 2.0}, "round 4 was undone when round 2 was trained again"


def test_three_rounds_are_kept_and_sites_do_not_mix(tmp_path: Path) -> None:
    one, other = OptimizerMemory(tmp_path, "one"), OptimizerMemory(tmp_path, "one.moments.000001")
    for number in range(1, 6):
        one.keep(number, moments(A=number))
    other.keep(1, moments(A=9))
    assert len(list((tmp_path / "one.moments").glob("00000?.safetensors"))) == 3
    assert read(one, 4) == {"A/exp_avg": 3.0}
    assert read(other, 2) == {"A/exp_avg": 9.0}
    OptimizerMemory.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    memory = OptimizerMemory(tmp_path, "site")
    memory.keep(1, moments(A=1))
    (path,) = (tmp_path / "site.moments").iterdir()
    path.write_bytes(b"{")
    with pytest.raises(RunError, match="FT721"):
        memory.before(2)
