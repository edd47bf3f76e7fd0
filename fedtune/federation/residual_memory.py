"""What quantization left out of a site's updates, on the site's own disk until a later round sends it."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedtune.errors import Problem, RunError
from fedtune.federation.round_files import RoundFiles
from fedtune.models.adapter import Adapter

__all__ = ["ResidualMemory"]

_KIND = "residual"


class ResidualMemory:
    """Residuals after each of a site's last rounds; they leave the site as part of its later updates alone.

    Args:
        state_dir: Folder of what sites remember.
        site: The site's name.
    """

    def __init__(self, state_dir: Path, site: str) -> None:
        self._files = RoundFiles(state_dir, site, _KIND)

    def before(self, round_number: int) -> Adapter:
        """Return the residuals after the last round before this one, by tensor; none before the first.

        Raises:
            RunError: FT722, the file is damaged.
        """
        path = self._files.before(round_number)
        if path is None:
            return {}
        try:
            residual: Adapter = load_file(path)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise RunError(
                Problem(
                    code="FT722",
                    what=f"what earlier rounds left out cannot be read: {error}",
                    where=str(path),
                    fix="restore the file from a backup, or delete it to go on without what it holds",
                )
            ) from None
        return residual

    def keep(self, round_number: int, residual: Adapter) -> None:
        """Write a round's residuals, and forget those of later rounds and of long ago.

        Residuals of tensors that this round did not train are carried over from the round before.
        """
        self._files.keep(round_number, save(self.before(round_number) | residual))

    @staticmethod
    def forget(state_dir: Path) -> None:
        """Delete what all sites of a folder keep, once no round will follow."""
        RoundFiles.forget(state_dir, _KIND)
