"""A round's end on disk: the global adapter and where it stands.

``checkpoints/NNNN/`` holds ``adapter.safetensors``, ``state.json`` and, where the aggregation method
remembers something, ``carried.safetensors``; where sites train at their own pace, ``flight.json`` and
``versions.safetensors``. The run directory writes the folder whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedtune.aggregation.carrying import Carried
from fedtune.errors import Problem, RunError
from fedtune.federation.flight import Flight, parse_flight
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.run_directory import RunDirectory

__all__ = ["Checkpoint", "load_checkpoint", "save_checkpoint"]

VERSION = 1
CARRIED_FILE = "carried.safetensors"
FLIGHT_FILE, VERSIONS_FILE = "flight.json", "versions.safetensors"
KEPT = 2
"""A kill between a checkpoint and its round's last event redoes that round from the one before."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """State of a federation after a round.

    Attributes:
        round: The last round it contains.
        adapter: The global adapter.
        carried: What the aggregation method remembers; empty for most.
        flight: Who was training, where sites train at their own pace.
        versions: Earlier global adapters that a simulation's sites in flight began with, by round.
    """

    round: int
    adapter: Adapter
    carried: Carried = field(default_factory=dict)
    flight: Flight | None = None
    versions: Mapping[int, Adapter] = field(default_factory=dict)


def save_checkpoint(run: RunDirectory, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and remove all but the newest `KEPT`.

    Raises:
        RunError: The disk is full or fails; nothing that was there is lost.
    """
    state = {"v": VERSION, "round": checkpoint.round}
    files = {"adapter.safetensors": save(checkpoint.adapter), "state.json": json.dumps(state).encode()}
    if checkpoint.carried:
        files[CARRIED_FILE] = save(dict(checkpoint.carried))
    if checkpoint.flight is not None:
        files[FLIGHT_FILE] = checkpoint.flight.to_json().encode()
    if checkpoint.versions:
        flat = {f"{of}/{name}": each[name] for of, each in checkpoint.versions.items() for name in each}
        files[VERSIONS_FILE] = save(flat)
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
        flown = path / FLIGHT_FILE
        flight = parse_flight(flown.read_text(encoding="utf-8")) if flown.exists() else None
        versions = load_file(path / VERSIONS_FILE) if (path / VERSIONS_FILE).exists() else {}
        _check(state, adapter, round_number, spec)
        earlier = {of: _ordered(each, spec) for of, each in _by_version(versions).items()}
        for of, each in earlier.items():
            _check({"v": VERSION, "round": of}, each, of, spec)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RunError(
            Problem(
                code="FT710",
                what=f"the checkpoint of round {round_number} cannot be used: {error}",
                where=str(path),
                fix="restore the folder from a backup, or start again under another name",
            )
        ) from None
    return Checkpoint(
        round=round_number,
        adapter=_ordered(adapter, spec),
        carried=carried,
        flight=flight,
        versions=earlier,
    )


def _ordered(adapter: Adapter, spec: AdapterSpec) -> Adapter:
    return {name: adapter[name].astype(spec.dtype, copy=False) for name in spec.shapes}


def _by_version(tensors: Adapter) -> dict[int, Adapter]:
    found: dict[int, Adapter] = {}
    for name, tensor in tensors.items():
        of, _, inner = name.partition("/")
        found.setdefault(int(of), {})[inner] = tensor
    return found


def _check(state: Any, adapter: Adapter, round_number: int, spec: AdapterSpec) -> None:
    if state["v"] != VERSION or state["round"] != round_number:
        raise ValueError(f"it says version {state['v']}, round {state['round']}")
    if {name: array.shape for name, array in adapter.items()} != dict(spec.shapes):
        raise ValueError("its tensors are not those of the configured adapter")
