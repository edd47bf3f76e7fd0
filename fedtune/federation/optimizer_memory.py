"""The moments of a site's optimizer between rounds, on the site's own disk."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedtune.errors import Problem, RunError
from fedtune.federation.round_files import RoundFiles
from fedtune.training.optimizer import Moments

__all__ = ["OptimizerMemory"]


class OptimizerMemory:
    """Moments after each of a site's last rounds; nothing of it ever leaves the site.

    Args:
        state_dir: Folder of what sites remember.
        site: The site's name.
        kind: Whose moments: of what the site sends, or of the model that is its own.
        kept: Of how many rounds moments are kept.
    """

    def __init__(
        self,
        state_dir: Path,
        site: str,
        *,
        kind: Literal["moments", "own_moments"] = "moments",
        kept: int = RoundFiles.KEPT_ROUNDS,
    ) -> None:
        self._files = RoundFiles(state_dir, site, kind, kept=kept)

    def before(self, round_number: int) -> Moments | None:
        """Return the moments after the last round before this one; None before the first.

        Raises:
            RunError: FT721, the file is damaged.
        """
        path = self._files.before(round_number)
        if path is None:
            return None
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise RunError(
                Problem(
                    code="FT721",
                    what=f"the optimizer's moments cannot be read: {error}",
                    where=str(path),
                    fix="restore the file from a backup, or delete it to go on with empty moments",
                )
            ) from None

    def keep(self, round_number: int, moments: Moments) -> None:
        """Write a round's moments, and forget those of later rounds and of long ago."""
        self._files.keep(round_number, save(moments))

    @staticmethod
    def forget(state_dir: Path) -> None:
        """Delete what all sites of a folder remember, once no round will follow."""
        for kind in ("moments", "own_moments"):
            RoundFiles.forget(state_dir, kind)
