"""``fedtune server start``: serve sites until stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtune.commands.reporting import say
from fedtune.commands.serving import stops_on_signals
from fedtune.coordinator.daemon import Server
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.settings import load_settings
from fedtune.observability.json_log import log_to

__all__ = ["run_start"]


def run_start(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Returns:
        0.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    settings = load_settings(folder.settings)
    if arguments.insecure:
        say("WITHOUT TLS, node keys and gate: whoever can log in to this machine can pose as a site")
    stop = stops_on_signals()
    with log_to(folder.logs, "server"):
        say(f"{settings.federation}: sites connect to {settings.address}; Ctrl-C stops the server")
        Server(folder=folder, settings=settings, insecure=arguments.insecure).serve(stop)
    say("stopped; a run that was going on goes on when the server starts again")
    return 0
