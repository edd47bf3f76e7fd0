"""``fedtune export RUN FOLDER``: the adapter in PEFT format, or one model with the adapter added in."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtune.commands.reporting import print_json, say
from fedtune.commands.runs import open_run
from fedtune.errors import Problem, RunError
from fedtune.observability.disk import write_folder_atomic

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Write the folder.

    Returns:
        0.

    Raises:
        RunError: FT740, the folder holds something already; FT730, the run has no adapter.
    """
    opened, target = open_run(arguments.run), Path(arguments.folder)
    adapter = opened.adapter_dir()
    if arguments.merged:
        from fedtune.export.merge import merge_adapter  # noqa: PLC0415
        from fedtune.models.cache import cache_folder  # noqa: PLC0415
        from fedtune.models.gguf import converted  # noqa: PLC0415
        from fedtune.models.resolve import resolve  # noqa: PLC0415

        model = opened.config.model
        source = resolve(model)
        base = source.path if source.kind == "directory" else converted(source.path, cache_folder(model))
        merge_adapter(base, adapter, target)
    else:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunError(
                Problem(
                    code="FT740",
                    what="the folder for the adapter holds something already",
                    where=str(target),
                    fix="name a new folder: an adapter is not written over other files",
                )
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        write_folder_atomic(target, {file.name: file.read_bytes() for file in sorted(adapter.iterdir())})
    written = sorted(file.name for file in target.iterdir())
    if arguments.json:
        print_json({"folder": str(target), "merged": arguments.merged, "files": written})
    say(f"{target}: {', '.join(written)}")
    return 0
