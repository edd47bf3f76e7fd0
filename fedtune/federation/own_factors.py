"""What a site trains and keeps for itself (``aggregation=fedsa``, ``personal=…``), on its own disk."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from fedtune.errors import Problem, RunError
from fedtune.federation.round_files import RoundFiles
from fedtune.models.adapter import Adapter, AdapterSpec, Factor

__all__ = ["OwnFactors", "personal_folder"]

_KIND = "own"


class OwnFactors:
    """A site's own factors after each of its last rounds; they stay when the run is over: they are its model.

    Args:
        state_dir: Folder of what sites remember.
        site: The site's name.
    """

    def __init__(self, state_dir: Path, site: str) -> None:
        self._files = RoundFiles(state_dir, site, _KIND)

    def has(self, round_number: int) -> bool:
        """Say whether there are any from before a round."""
        return self._files.before(round_number) is not None

    def personal(self, adapter: Adapter, round_number: int) -> Adapter:
        """Return the global adapter with this site's own factors, as they were before a round.

        Raises:
            RunError: FT723, the file is damaged.
        """
        path = self._files.before(round_number)
        if path is None:
            return adapter
        try:
            own: Adapter = load_file(path)
        except (SafetensorError, OSError, KeyError, TypeError) as error:
            raise RunError(
                Problem(
                    code="FT723",
                    what=f"the factors that this site keeps for itself cannot be read: {error}",
                    where=str(path),
                    fix="restore the file from a backup, or delete it to go on from the shared adapter",
                )
            ) from None
        return adapter | own

    def keep_own(
        self, round_number: int, trained: Adapter, spec: AdapterSpec, factors: Collection[Factor]
    ) -> None:
        """Keep the tensors of these factors from what a round trained."""
        self._files.keep(round_number, save({name: trained[name] for name in spec.names(factors)}))


def personal_folder(run: Path, site: str) -> Path:
    """Return where a simulated run has a site's own model in PEFT format."""
    return run / "personal" / quote(site, safe="")
