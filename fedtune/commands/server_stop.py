"""``fedtune server stop``: a run, or the server."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtune.commands.reporting import say
from fedtune.commands.serving import stop_process
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.wanted import WantedRuns
from fedtune.errors import Problem, RunError

__all__ = ["run_stop"]


def run_stop(arguments: argparse.Namespace) -> int:
    """Stop a run, or the server.

    Returns:
        0, also where nothing was there to be stopped.

    Raises:
        RunError: FT706, there is no such run going on.
        MachineError: FT689, the server does not end.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    if arguments.run is None:
        ended = stop_process(folder.lock, "the server")
        say("the server has ended" if ended else "no server serves this folder")
        return 0
    if not WantedRuns(folder.wanted).ask_to_stop(arguments.run):
        raise RunError(
            Problem(
                code="FT706",
                what=f"no run {arguments.run!r} is going on here",
                where=str(folder.path),
                fix="`fedtune server status` names the one that is",
            )
        )
    say(f"{arguments.run} is being stopped; complete rounds are kept, and resume=true goes on")
    return 0
