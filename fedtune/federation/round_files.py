"""What a site keeps of its last rounds, on its own disk: one file for each, in a folder of its own.

Kept by round, as the position in its data is: a round that is asked for again finds what it found the first
time, and gives the same bytes. Looking for a round reads that folder alone, so the ten thousand sites of a
simulation cost a site nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from fedtune.observability.disk import write_atomic

__all__ = ["RoundFiles"]

_SUFFIX = ".safetensors"


class RoundFiles:
    """One site's files of one kind; nothing of them ever leaves the site.

    Args:
        state_dir: Folder of what sites remember.
        site: The site's name.
        kind: What the files hold, such as ``moments``.
        kept: Of how many rounds files are kept.
        private: Whether the owner alone may read them.
    """

    KEPT_ROUNDS = 3
    """The server may go back by as many rounds as it has checkpoints, and one more is in the making."""

    def __init__(
        self, state_dir: Path, site: str, kind: str, *, kept: int = KEPT_ROUNDS, private: bool = False
    ) -> None:
        self._kept, self._private = kept, private
        self._folder = state_dir / f"{quote(site, safe='')}.{kind}"

    def before(self, round_number: int) -> Path | None:
        """Return the file of the last round before this one; None before the first."""
        earlier = [(number, path) for number, path in self._files() if number < round_number]
        return max(earlier)[1] if earlier else None

    def last(self) -> tuple[int, Path] | None:
        """Return the last round that has a file, and the file."""
        return max(self._files(), default=None)

    def clear(self) -> None:
        """Delete all of them."""
        for _, path in list(self._files()):
            path.unlink()

    def keep(self, round_number: int, data: bytes) -> None:
        """Write a round's file, and forget those of later rounds and of long ago."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / f"{round_number:06}{_SUFFIX}", data, private=self._private)
        known = sorted(self._files())
        later = [path for number, path in known if number > round_number]
        old = [path for number, path in known if number <= round_number][: -self._kept]
        for path in (*later, *old):
            path.unlink()

    @staticmethod
    def forget(state_dir: Path, kind: str) -> None:
        """Delete the files of a kind that all sites of a folder keep, once no round will follow."""
        for folder in state_dir.glob(f"*.{kind}"):
            shutil.rmtree(folder)

    def _files(self) -> Iterator[tuple[int, Path]]:
        for path in self._folder.glob("*" + _SUFFIX):
            number = path.name.removesuffix(_SUFFIX)
            if number.isdecimal():
                yield int(number), path
