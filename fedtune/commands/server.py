"""``fedtune server``: the coordinator's side of a deployment."""

from __future__ import annotations

import argparse

from fedtune.commands.dispatch import run_named

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
    return run_named(arguments.server_command, _MODULES, arguments)
