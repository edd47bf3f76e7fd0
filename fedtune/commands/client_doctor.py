"""``fedtune client doctor``: print every check of a site's folder, each as soon as it is made."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from fedtune.commands.checks_view import report_checks
from fedtune.commands.config_file import read_config_file
from fedtune.site.checkup.run import run_site_checks

__all__ = ["run_doctor"]


def run_doctor(arguments: argparse.Namespace) -> int:
    """Make all checks of a site's folder.

    Args:
        arguments: ``folder``, ``config`` (a path or None) and ``json``.

    Returns:
        0 when none failed, else the exit code of a :class:`MachineError`.
    """
    config = None if arguments.config is None else partial(read_config_file, Path(arguments.config))
    return report_checks(
        lambda starting: run_site_checks(Path(arguments.folder), config=config, starting=starting),
        as_json=arguments.json,
    )
