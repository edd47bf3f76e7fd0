"""``fedtune server``: the coordinator's side of a deployment."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

__all__ = ["run"]

_MODULES = {
    "init": "server_setup",
    "enrol": "server_setup",
    "remove": "server_setup",
    "start": "server_start",
    "preflight": "server_preflight",
    "run": "server_run",
    "status": "server_status",
    "stop": "server_stop",
    "backup": "server_backup",
    "restore": "server_backup",
}


def run(arguments: argparse.Namespace) -> int:
    """Run the command below ``server``.

    Returns:
        Its exit code.

    Raises:
        FedtuneError: As the command's own module says.
    """
    name = arguments.server_command
    module = importlib.import_module(f"fedtune.commands.{_MODULES[name]}")
    command: Callable[[argparse.Namespace], int] = getattr(module, f"run_{name}")
    return command(arguments)
