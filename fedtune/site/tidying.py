"""What a site forgets by itself: traces of runs that nobody has gone on with for a month."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from fedtune.federation.control_memory import ControlMemory
from fedtune.federation.kept_training import KeptTraining
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.residual_memory import ResidualMemory

__all__ = ["KEPT", "forget_old_runs"]

KEPT: Final = timedelta(days=30)

logger = logging.getLogger(__name__)


def forget_old_runs(runs: Path, now: datetime) -> list[str]:
    """Delete moments, residuals, variates and trainings of runs in which nothing was written for 30 days.

    All are made of the site's rows and serve nothing but the next round of their run. What is small and
    keeps a site from training on the same rows twice stays. A file that cannot be deleted is logged.

    Args:
        runs: Folder with one folder for each run.
        now: The time, with its zone.

    Returns:
        Names of the runs of which something was deleted.
    """
    forgotten = []
    for folder in sorted(path for path in runs.glob("*") if path.is_dir()):
        before = set(folder.iterdir())
        last = max((path.stat().st_mtime for path in (folder, *before)), default=0.0)
        if now.timestamp() - last <= KEPT.total_seconds():
            continue
        try:
            OptimizerMemory.forget(folder)
            ResidualMemory.forget(folder)
            ControlMemory.forget(folder)
            KeptTraining.forget(folder)
        except OSError as error:
            logger.warning("what was remembered of run %s could not be deleted: %s", folder.name, error)
        if set(folder.iterdir()) != before:
            forgotten.append(folder.name)
            logger.info("run %s was not touched for %d days: its moments are deleted", folder.name, KEPT.days)
    return forgotten
