"""Checkpoints: what comes back is what was saved, bit for bit, or an error that names the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedtune.errors import RunError
from fedtune.federation.checkpoint import KEPT, Checkpoint, load_checkpoint, save_checkpoint
from fedtune.models.adapter import AdapterSpec, initial_adapter
from fedtune.observability.run_directory import RunDirectory

SPEC = AdapterSpec(
    shapes={"q.lora_A.weight": (2, 5), "q.lora_B.weight": (3, 2)}, scaling=2.0, dtype="float32"
)


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    adapter = initial_adapter(SPEC, 7)
    with RunDirectory.create(tmp_path / "run") as run:
        save_checkpoint(run, Checkpoint(round=1, adapter=adapter))
        back = load_checkpoint(run, 1, SPEC)
    assert back.round == 1
    for name in SPEC.shapes:
        np.testing.assert_array_equal(back.adapter[name], adapter[name], strict=True)


def test_the_newest_are_kept(tmp_path: Path) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        for number in range(1, 6):
            save_checkpoint(run, Checkpoint(round=number, adapter=initial_adapter(SPEC, number)))
        assert run.checkpoints() == tuple(range(6 - KEPT, 6))


@pytest.mark.parametrize("damage", ["missing", "cut", "state", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    with RunDirectory.create(tmp_path / "run") as run:
        save_checkpoint(run, Checkpoint(round=1, adapter=initial_adapter(SPEC, 7)))
        folder, spec = run.checkpoint_path(1), SPEC
        match damage:
            case "missing":
                (folder / "adapter.safetensors").unlink()
            case "cut":
                whole = (folder / "adapter.safetensors").read_bytes()
                (folder / "adapter.safetensors").write_bytes(whole[:-4])
            case "state":
                (folder / "state.json").write_text('{"v": 1, "round": 2}')
            case _:
                shapes = {"q.lora_A.weight": (4, 5), "q.lora_B.weight": (3, 4)}
                spec = AdapterSpec(shapes=shapes, scaling=2.0, dtype="float32")
        with pytest.raises(RunError, match="FT710"):
            load_checkpoint(run, 1, spec)
