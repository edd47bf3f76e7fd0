"""Measurements of a federation beside what a user would pick instead, and of a warm start.

20 virtual clients, 4 a round, short local work, SmolLM2-135M in NF4 with rank 16: `fedtune simulate` as it is
configured out of the box, Flower's own LLM example on Ray (`fedtune.simulation.flower_example`), and the same
with the model kept by each actor. Rows, rank, steps and the base are the same on all sides. What counts is
the time of the rounds, from the first message to the last aggregate; starting up is told apart.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.models.cache import cache_folder
from fedtune.models.gguf import converted
from fedtune.models.hardware import compute_dtype, physical_cores, resolve_device
from fedtune.models.resolve import resolve
from fedtune.observability.events import (
    ClientTrained,
    RoundAggregated,
    RoundStarted,
    read_events,
)
from fedtune.simulation.flower_example import ExampleSettings
from fedtune.simulation.sites import load_sites

__all__ = ["bench_federation"]

CLIENTS, COHORT, ROUNDS, STEPS = 20, 4, 3, 2
REPEATS = 3
_SETTINGS = (
    "model=smollm2",
    "data=hpo",
    "partition=iid",
    f"partition.clients={CLIENTS}",
    f"federation.clients_per_round={COHORT}",
    f"federation.rounds={ROUNDS}",
    f"training.steps_per_round={STEPS}",
    "training.learning_rate=1e-3",
    "training.decay=constant",
    "evaluation.every_rounds=0",
    "evaluation.clients=1",
    "evaluation.generations=0",
)
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "FLWR_TELEMETRY_ENABLED": "0", "RAY_DEDUP_LOGS": "1"}


@dataclass(frozen=True, kw_only=True)
class _Ours:
    """One run of ``fedtune simulate``.

    Attributes:
        seconds: Of its rounds.
        first_step_seconds: From the process's start to the first client's training.
        overhead_fraction: Of its rounds, in which nobody trained.
    """

    seconds: float
    first_step_seconds: float
    overhead_fraction: float


def bench_federation(
    *, on_part: Callable[[str], None], repeats: int = REPEATS
) -> dict[str, float | list[float]]:
    """Measure, one after another in turn; the keys are an interface.

    Args:
        on_part: Told of what comes next.
        repeats: How often each side runs.
    """
    with tempfile.TemporaryDirectory(prefix="fedtune-bench-") as name:
        folder = Path(name)
        example, cached = _settings(folder)
        on_part("fedtune once, which fills the caches")
        _ours(folder / "cold")
        sides: dict[str, list[float]] = {"fedtune": [], "flower_example": [], "cached_ray": []}
        ours: list[_Ours] = []
        for repeat in range(repeats):
            on_part(f"fedtune, {repeat + 1} of {repeats}")
            ours.append(_ours(folder / f"run-{repeat}"))
            sides["fedtune"].append(ours[-1].seconds)
            for side, settings in (("cached_ray", cached), ("flower_example", example)):
                on_part(f"{side}, {repeat + 1} of {repeats}")
                sides[side].append(_theirs(settings, folder / f"{side}.json"))
    work = 3600 * COHORT * ROUNDS
    figures: dict[str, float | list[float]] = {}
    for side, seconds in sides.items():
        figures[f"client_rounds_per_hour_{side}"] = work / statistics.median(seconds)
        figures[f"client_rounds_per_hour_{side}_spread"] = [work / max(seconds), work / min(seconds)]
    first = [run.first_step_seconds for run in ours]
    for side in ("flower_example", "cached_ray"):
        each = [theirs / mine for mine, theirs in zip(sides["fedtune"], sides[side], strict=True)]
        figures[f"speedup_over_{side}"] = statistics.median(each)
        figures[f"speedup_over_{side}_spread"] = [min(each), max(each)]
    return figures | {
        "warm_start_seconds": statistics.median(first),
        "warm_start_seconds_spread": [min(first), max(first)],
        "overhead_fraction": statistics.median(run.overhead_fraction for run in ours),
    }


def _settings(folder: Path) -> tuple[ExampleSettings, ExampleSettings]:
    """Return the settings of the example as it is and with a kept model; writes the clients' rows."""
    config = compose([*_SETTINGS, "name=rows", f"runs_dir={folder}"])
    sites, files = load_sites(config), []
    for index in range(len(sites)):
        rows = [[row.token_ids.tolist(), row.loss_mask.tolist()] for row in sites.site(index).train]
        files.append(folder / f"rows-{index}.json")
        files[-1].write_text(json.dumps(rows), encoding="utf-8")
    example = ExampleSettings(
        model=str(_weights(config)),
        rows=tuple(map(str, files)),
        clients=CLIENTS,
        cohort=COHORT,
        rounds=ROUNDS,
        steps=STEPS,
        examples_per_step=config.training.examples_per_step,
        learning_rate=config.training.learning_rate,
        rank=config.peft.rank,
        alpha=config.peft.alpha,
        dropout=config.peft.dropout,
        compute_dtype=str(compute_dtype(config.model, resolve_device("cpu"))).removeprefix("torch."),
        threads=max(1, physical_cores() // 2),  # two actors beside each other do more than one on all cores
        cached=False,
    )
    return example, replace(example, cached=True)


def _weights(config: Config) -> Path:
    source = resolve(config.model)
    return converted(source.path, cache_folder(config.model)) if source.kind == "gguf" else source.path


def _ours(runs: Path) -> _Ours:
    began = time.time()
    command = [sys.executable, "-m", "fedtune", "simulate", *_SETTINGS, "name=bench", f"runs_dir={runs}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise RuntimeError(f"fedtune simulate ended with {done.returncode}: {done.stderr[-2000:]}")
    events = read_events(runs / "bench" / "rounds.jsonl")
    starts = [event.time for event in events if isinstance(event, RoundStarted)]
    ends = [event.time for event in events if isinstance(event, RoundAggregated)]
    trained = [event for event in events if isinstance(event, ClientTrained)]
    seconds = ends[-1] - starts[0]
    return _Ours(
        seconds=seconds,
        first_step_seconds=min(event.started for event in trained) - began,
        overhead_fraction=1 - sum(event.finished - event.started for event in trained) / seconds,
    )


def _theirs(settings: ExampleSettings, path: Path) -> float:
    path.write_text(json.dumps(asdict(settings)), encoding="utf-8")
    command = [sys.executable, "-m", "fedtune.simulation.flower_example", str(path)]
    done = subprocess.run(  # noqa: S603
        command, check=False, capture_output=True, text=True, env=os.environ | _QUIET
    )
    if done.returncode:
        raise RuntimeError(f"the example ended with {done.returncode}: {done.stderr[-2000:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])
