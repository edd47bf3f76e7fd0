"""What a run of a deployment ended with, and what the same run gives in one process."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from support.cli_federation import SITES, CliFederation, tiny_run

import fedtune
from fedtune.config.compose import compose
from fedtune.federation.checkpoint import load_checkpoint
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import Adapter
from fedtune.observability.run_directory import RunDirectory

__all__ = ["last_adapter", "simulated"]


def simulated(
    federation: CliFederation, folder: Path, model: Path, *overrides: str, sites: Collection[str] = SITES
) -> Adapter:
    """The last adapter of a simulation of the same sites, with the same seeds and threads."""
    files = ",".join(str(federation.rows / f"{name}.jsonl") for name in sites)
    run = fedtune.simulate(
        [
            *(text for text in tiny_run(model__name=model) if not text.startswith("secagg.")),
            *("name=simulated", f"runs_dir={folder}", "data=files", f"data.files=[{files}]"),
            *("partition=natural", "partition.column=site", f"partition.values=[{','.join(sites)}]"),
            *("evaluation.generations=0", *overrides),
        ]
    )
    return last_adapter(run.path, run.config.federation.rounds, model)


def last_adapter(path: Path, rounds: int, model: Path) -> Adapter:
    config = compose([*tiny_run(), "name=shape"])
    spec = adapter_spec(replace(config.model, name=str(model)), config.peft)
    with RunDirectory.create(path, resume=True) as run:
        return load_checkpoint(run, rounds, spec).adapter
