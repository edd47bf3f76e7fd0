"""A federation small enough to train in a second: three unequal sites, a two-layer model."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["SIZES", "tiny_overrides", "write_rows"]

SIZES = {"ear": 12, "eye": 20, "heart": 28}


def write_rows(path: Path, sizes: dict[str, int] = SIZES) -> Path:
    rows = [
        {
            "instruction": f"Define finding {number} of the {site}",
            "output": f"Finding {number} is seen in the {site} of grade {number % 3}.",
            "site": site,
        }
        for site, count in sizes.items()
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_overrides(folder: Path, model: Path, **changed: object) -> list[str]:
    """Give overrides of a tiny run whose data and runs lie in a folder.

    Keywords with dots as double underscores replace or add keys.
    """
    data = folder / "rows.jsonl"
    if not data.exists():
        write_rows(data)
    settings: dict[str, object] = {
        "name": "tiny",
        "runs_dir": folder / "runs",
        "model.name": model,
        "model.quantization": "none",
        "model.compute_dtype": "float32",
        "data": "files",
        "data.files": f"[{data}]",
        "data.max_tokens": 96,
        "data.held_out_fraction": 0.2,
        "partition": "natural",
        "partition.column": "site",
        "peft.rank": 4,
        "training.steps_per_round": 3,
        "training.examples_per_step": 4,
        "training.microbatch_tokens": 256,
        "training.learning_rate": 0.01,
        "training.threads": 1,
        "federation.rounds": 2,
        "evaluation.generations": 2,
        "evaluation.max_new_tokens": 4,
    }
    settings |= {key.replace("__", "."): value for key, value in changed.items()}
    return [f"{key}={value}" for key, value in settings.items()]
