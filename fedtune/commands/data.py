"""``fedtune data check`` and ``split``: what is wrong with a dataset, and one file of it for each site."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from fedtune.commands.reporting import print_json, say
from fedtune.config.compose import compose
from fedtune.config.overrides import quoted
from fedtune.config.schema import Config
from fedtune.data.check import run_data_check
from fedtune.data.load import load_examples
from fedtune.errors import Problem, RunError
from fedtune.observability.disk import disk_errors, write_folder_atomic

__all__ = ["run"]

# Checking rows trains nothing: no length of a row may be refused for want of room in a forward pass.
_ROOM = [
    "training.microbatch_tokens=${data.max_tokens}",
    "evaluation.microbatch_tokens=${data.max_tokens}",
]


def run(arguments: argparse.Namespace) -> int:
    """Run the command below ``data``.

    Returns:
        Its exit code.

    Raises:
        FedtuneError: As the command says.
    """
    return _split(arguments) if arguments.data_command == "split" else _check(arguments)


def _check(arguments: argparse.Namespace) -> int:
    """Check a file, or a named dataset.

    Returns:
        0 when a run would take it, else the exit code of a DataError.
    """
    config = _composed(arguments)

    from fedtune.models.adapted import load_tokenizer  # noqa: PLC0415  # seconds, after the overrides are right

    return run_data_check(
        arguments.file,
        overrides=config.data,
        model=config.model,
        as_json=arguments.json,
        show=arguments.show,
        load_tokenizer=load_tokenizer,
    )


def _split(arguments: argparse.Namespace) -> int:
    """Write a file of rows for each value of a column.

    Returns:
        0.

    Raises:
        DataError: Everything that is wrong with the rows, or FT220 or FT227 of the column.
        RunError: FT740, the folder holds something already; FT705 or FT707, it cannot be written.
    """
    from fedtune.data.separate import separate  # noqa: PLC0415  # numpy, after the overrides are right

    target, config = Path(arguments.out), _composed(arguments)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(
            Problem(
                code="FT740",
                what="the folder for the rows holds something already",
                where=str(target),
                fix="name a new folder: rows are not written over other files",
            )
        )
    named = config.data.source == "files"
    data = config.data if named else replace(config.data, source=arguments.file)
    files = separate(load_examples(data).examples, arguments.column)
    with disk_errors(target, kept="nothing was written", again="split it again"):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_folder_atomic(target, files, kept="nothing was written")
    rows = {name: content.count(b"\n") for name, content in files.items()}
    if arguments.json:
        print_json({"folder": str(target), "rows": rows})
        return 0
    for name in sorted(rows):
        say(f"{target / name}: {rows[name]:,} rows")
    return 0


def _composed(arguments: argparse.Namespace) -> Config:
    is_file = Path(arguments.file).suffix != "" or Path(arguments.file).exists()
    source = ["data=files", f"data.files=[{quoted(arguments.file)}]", "partition=iid"] if is_file else []
    return compose([*_ROOM, *source, *arguments.overrides])
