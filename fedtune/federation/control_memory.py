"""A site's control variates between rounds (``training.control_variates``), on the site's own disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedtune.errors import Problem, RunError
from fedtune.federation.round_files import RoundFiles
from fedtune.models.adapter import Adapter

__all__ = ["ControlMemory"]

_KIND = "control"


class ControlMemory:
    """Variates after each of a site's last rounds; what leaves the site is how a round changed them.

    An update that the server never counted has changed them all the same: the federation's variate is then
    off by that change, divided by the number of sites.

    Args:
        state_dir: Folder of what sites remember.
        site: The site's name.
    """

    def __init__(self, state_dir: Path, site: str) -> None:
        self._files = RoundFiles(state_dir, site, _KIND)

    def before(self, round_number: int, adapter: Adapter) -> Adapter:
        """Return the variates after the last round before this one; zeros where there are none.

        Args:
            round_number: Round, from 1.
            adapter: The global adapter, which has their names and shapes.

        Raises:
            RunError: FT724, the file is damaged, or of another adapter.
        """
        kept = self._kept(round_number)
        for name, value in kept.items():
            if name not in adapter or value.shape != adapter[name].shape:
                raise self._damaged(
                    round_number, f"{name} of shape {value.shape} is no tensor of this adapter"
                )
        return {name: kept.get(name, np.zeros_like(tensor)) for name, tensor in adapter.items()}

    def keep(self, round_number: int, controls: Adapter) -> None:
        """Write a round's variates, and forget those of later rounds and of long ago.

        Variates of tensors that this round did not train are carried over from the round before.
        """
        self._files.keep(round_number, save(self._kept(round_number) | controls))

    @staticmethod
    def forget(state_dir: Path) -> None:
        """Delete what all sites of a folder keep, once no round will follow."""
        RoundFiles.forget(state_dir, _KIND)

    def _kept(self, round_number: int) -> Adapter:
        path = self._files.before(round_number)
        if path is None:
            return {}
        try:
            kept: Adapter = load_file(path)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise self._damaged(round_number, str(error)) from None
        return kept

    def _damaged(self, round_number: int, why: str) -> RunError:
        return RunError(
            Problem(
                code="FT724",
                what=f"this site's control variates cannot be read: {why}",
                where=str(self._files.before(round_number)),
                fix="restore the file from a backup, or delete it to go on with variates of zero",
            )
        )
