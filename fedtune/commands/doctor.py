"""``fedtune doctor``: print every check of this machine, each as soon as it is made."""

from __future__ import annotations

import argparse

from fedtune.commands.checks_view import report_checks
from fedtune.site.doctor import run_checks

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Make all checks.

    Returns:
        0 when none failed, else the exit code of a :class:`MachineError`.
    """
    return report_checks(lambda starting: run_checks(), as_json=arguments.json)
