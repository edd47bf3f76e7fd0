"""The module behind a command is imported when the command is given: `fedtune --help` stays quick."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping

__all__ = ["run_named"]


def run_named(name: str, modules: Mapping[str, str], arguments: argparse.Namespace) -> int:
    """Run ``run_NAME`` of the command's module.

    Args:
        name: The command.
        modules: Command to module below ``fedtune.commands``.
        arguments: Parsed.

    Returns:
        Its exit code.

    Raises:
        FedtuneError: As the command's own module says.
    """
    module = importlib.import_module(f"fedtune.commands.{modules[name]}")
    command: Callable[[argparse.Namespace], int] = getattr(module, f"run_{name}")
    return command(arguments)
