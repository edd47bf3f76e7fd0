"""What a site remembers of what it has not sent: by round, carried over, and no longer than needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedtune.errors import RunError
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.residual_memory import ResidualMemory
from fedtune.models.adapter import Adapter


def residual(**values: float) -> Adapter:
    return {name: np.full((2, 3), value, np.float32) for name, value in values.items()}


def read(memory: ResidualMemory, round_number: int) -> dict[str, float]:
    return {name: float(value[0, 0]) for name, value in memory.before(round_number).items()}


def test_a_round_finds_what_the_last_one_before_it_left_however_often_it_is_asked_for(tmp_path: Path) -> None:
    memory = ResidualMemory(tmp_path, "a/b")
    assert memory.before(1) == {}
    memory.keep(1, residual(A=1))
    memory.keep(4, residual(A=4))
    assert read(memory, 4) == {"A": 1.0}
    assert read(memory, 9) == {"A": 4.0}
    memory.keep(2, residual(A=2))
    assert read(memory, 9) == {"A": 2.0}, "round 4 was undone when round 2 was trained again"
    assert memory.before(9)["A"].dtype == np.float32


def test_what_a_round_does_not_train_is_carried_over(tmp_path: Path) -> None:
    memory = ResidualMemory(tmp_path, "site")
    memory.keep(1, residual(B=1))
    memory.keep(2, residual(A=2))
    memory.keep(3, residual(B=3))
    assert read(memory, 3) == {"A": 2.0, "B": 1.0}
    assert read(memory, 4) == {"A": 2.0, "B": 3.0}


def test_three_rounds_are_kept_and_neither_sites_nor_kinds_mix(tmp_path: Path) -> None:
    one, other = ResidualMemory(tmp_path, "one"), ResidualMemory(tmp_path, "one.residual.000001")
    for number in range(1, 6):
        one.keep(number, residual(A=number))
    other.keep(1, residual(A=9))
    assert len(list((tmp_path / "one.residual").glob("00000?.safetensors"))) == 3
    assert read(one, 4) == {"A": 3.0}
    assert read(other, 2) == {"A": 9.0}
    assert OptimizerMemory(tmp_path, "one").before(9) is None
    OptimizerMemory.forget(tmp_path)
    assert read(one, 4) == {"A": 3.0}
    ResidualMemory.forget(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"{", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "[:12]])
def test_a_damaged_file_is_named(tmp_path: Path, data: bytes) -> None:
    memory = ResidualMemory(tmp_path, "site")
    memory.keep(1, residual(A=1))
    (path,) = (tmp_path / "site.residual").iterdir()
    path.write_bytes(data)
    with pytest.raises(RunError, match="FT722") as caught:
        memory.before(2)
    assert caught.value.problems[0].where == str(path)
