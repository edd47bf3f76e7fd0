"""``fedtune data check FILE``: every problem of a dataset, and what the model will see of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtune.config.compose import compose
from fedtune.config.overrides import quoted
from fedtune.data.check import run_data_check

__all__ = ["run"]

# Checking rows trains nothing: no length of a row may be refused for want of room in a forward pass.
_ROOM = [
    "training.microbatch_tokens=${data.max_tokens}",
    "evaluation.microbatch_tokens=${data.max_tokens}",
]


def run(arguments: argparse.Namespace) -> int:
    """Check a file, or a named dataset.

    Returns:
        0 when a run would take it, else the exit code of a DataError.
    """
    is_file = Path(arguments.file).suffix != "" or Path(arguments.file).exists()
    source = ["data=files", f"data.files=[{quoted(arguments.file)}]", "partition=iid"] if is_file else []
    config = compose([*_ROOM, *source, *arguments.overrides])

    from fedtune.models.adapted import load_tokenizer  # noqa: PLC0415  # seconds, after the overrides are right

    return run_data_check(
        arguments.file,
        overrides=config.data,
        model=config.model,
        as_json=arguments.json,
        show=arguments.show,
        load_tokenizer=load_tokenizer,
    )
