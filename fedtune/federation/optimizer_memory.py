"""The moments of a site's optimizer between rounds, on the site's own disk.

Kept by round, as the position in its data is: a round that is asked for again goes on from where it went on
the first time, and gives the same delta.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from fedtune.errors import Problem, RunError
from fedtune.observability.disk import write_atomic
from fedtune.training.optimizer import Moments

__all__ = ["OptimizerMemory"]


class OptimizerMemory:
    """Moments after each of a site's last rounds; nothing of it ever leaves the site.

    Args:
        state_dir: Folder of what sites remember.
        site: The site's name.
    """

    KEPT_ROUNDS = 3
    """The server may go back by as many rounds as it has checkpoints, and one more is in the making."""

    def __init__(self, state_dir: Path, site: str) -> None:
        self._folder, self._name = state_dir, quote(site, safe="")

    def before(self, round_number: int) -> Moments | None:
        """Return the moments after the last round before this one; None before the first.

        Raises:
            RunError: FT721, the file is damaged.
        """
        earlier = [(number, path) for number, path in self._files() if number < round_number]
        if not earlier:
            return None
        _, path = max(earlier)
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
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path(round_number), save(moments))
        known = sorted(self._files())
        later = [path for number, path in known if number > round_number]
        old = [path for number, path in known if number <= round_number][: -self.KEPT_ROUNDS]
        for path in (*later, *old):
            path.unlink()

    @staticmethod
    def forget(state_dir: Path) -> None:
        """Delete what all sites of a folder remember, once no round will follow."""
        for path in state_dir.glob("*.moments.*.safetensors"):
            path.unlink()

    def _path(self, round_number: int) -> Path:
        return self._folder / f"{self._name}.moments.{round_number:06}.safetensors"

    def _files(self) -> Iterator[tuple[int, Path]]:
        prefix, suffix = f"{self._name}.moments.", ".safetensors"
        for path in self._folder.glob("*" + suffix):
            number = path.name.removeprefix(prefix).removesuffix(suffix)
            if path.name.startswith(prefix) and number.isdecimal():
                yield int(number), path
