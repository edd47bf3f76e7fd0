"""``fedtune client``: a site's side of a deployment."""

from __future__ import annotations

import argparse

from fedtune.commands.dispatch import run_named

__all__ = ["run"]

_MODULES = {
    "init": "client_setup",
    "join": "client_setup",
    "start": "client_start",
    "status": "client_status",
    "doctor": "client_doctor",
    "preview": "client_preview",
    "approve": "client_operator",
    "pause": "client_operator",
    "resume": "client_operator",
    "leave": "client_operator",
    "stop": "client_operator",
    "audit": "client_audit",
}


def run(arguments: argparse.Namespace) -> int:
    """Run the command below ``client``.

    Returns:
        Its exit code.

    Raises:
        FedtuneError: As the command's own module says.
    """
    return run_named(arguments.client_command, _MODULES, arguments)
