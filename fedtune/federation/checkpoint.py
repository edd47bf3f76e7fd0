"""A round's end on disk: the global adapter and where it stands.

``checkpoints/NNNN/`` holds ``adapter.safetensors``, ``state.json`` and, where the aggregation method
remembers something, ``carried.safetensors``; the run directory writes the folder whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedtune.aggregation.carrying import Carried
from fedtune.errors import Problem, RunError
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.run_directory import RunDirectory

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

VERSION = 1
CARRIED_FILE = "carried.safetensors"
KEPT = 2
"""A kill between a checkpoint and its round's last event redoes that round from the one before."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a federation after a round.

    Attributes:
        round: The last round it contains.
        adapter: The global adapter.
        carried: What the aggregation method remembers; empty for most.
    """

    round: int
    adapter: Adapter
    carried: Carried = field(default_factory=dict)


def save_checkpoint(run: RunDirectory, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the newest `KEPT`.

    Raises:
        RunError: The disk is full or fails; nothing that was there is lost.
    """
    state = {"v": VERSION, "round": checkpoint.round}
    files = {"adapter.safetensors": save(checkpoint.adapter), "state.json": json.dumps(state).encode()}
    if checkpoint.carried:
        files[CARRIED_FILE] = save(dict(checkpoint.carried))
    run.write_checkpoint(checkpoint.round, files)
    for old in run.checkpoints()[:-KEPT]:
        shutil.rmtree(run.checkpoint_path(old), ignore_errors=True)


def load_checkpoint(run: RunDirectory, round_number: int, spec: AdapterSpec) -> Checkpoint:
    """Read the checkpoint of a round.

    Raises:
        RunError: FT710, it is missing, damaged, or of another adapter.
    """
    path = run.checkpoint_path(round_number)
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        adapter = load_file(path / "adapter.safetensors")
        carried = load_file(path / CARRIED_FILE) if (path / CARRIED_FILE).exists() else {}
        _check(state, adapter, round_number, spec)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            Problem(
                code="FT710",
                what=f"the checkpoint of round {round_number} cannot be used: {error}",
                where=str(path),
                fix="restore the folder from a backup, or start again under another name",
            )
        ) from None
    ordered = {name: adapter[name].astype(spec.dtype, copy=False) for name in spec.shapes}
    return Checkpoint(round=round_number, adapter=ordered, carried=carried)


def _check(state: Any, adapter: Adapter, round_number: int, spec: AdapterSpec) -> None:
    if state["v"] != VERSION or state["round"] != round_number:
        raise ValueError(f"it says version {state['v']}, round {state['round']}")
    if {name: array.shape for name, array in adapter.items()} != dict(spec.shapes):
        raise ValueError("its tensors are not those of the configured adapter")
