"""Files that are written once: none is written over, and a set of them is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from fedtune.errors import Problem
from fedtune.keys.problems import problem, refusal
from fedtune.observability.disk import disk_errors, sync_directory, write_all

__all__ = ["MAX_BYTES", "PRIVATE", "PUBLIC", "existing", "mode_flaw", "read_bounded", "write_new"]

PRIVATE: Final = 0o600
PUBLIC: Final = 0o644
MAX_BYTES: Final = 64 * 2**20


def existing(paths: Iterable[Path]) -> list[Problem]:
    """FT634 for each path where something is already."""
    return [
        problem("FT634", "key material is not written over a file that is there", where=str(path))
        for path in paths
        if os.path.lexists(path)
    ]


def write_new(files: Mapping[Path, tuple[bytes, int]]) -> None:
    """Write new files, each with its mode, and make their folders, which are their owner's alone.

    Raises:
        RunError: FT705 or FT707; no file of the set is left.
    """
    made: list[Path] = []
    for path, (data, mode) in files.items():
        with disk_errors(path, kept="nothing was changed", again="repeat the command"):
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
                made.append(path)
                try:
                    write_all(file, data)
                    os.fsync(file)
                finally:
                    os.close(file)
                sync_directory(path.parent)
            except BaseException:
                for each in made:
                    each.unlink(missing_ok=True)
                raise


def mode_flaw(mode: int) -> str | None:
    """What is wrong with the mode of a private file: anybody but its owner may do something with it."""
    return f"others than its owner may use it (mode {mode & 0o777:04o})" if mode & 0o077 else None


def read_bounded(path: Path, code: str, what: str, *, private: bool = False, most: int = MAX_BYTES) -> bytes:
    """A file's bytes, of which there may not be more than ``most``.

    Raises:
        FederationError: It cannot be read, is too large, or is private and others may use it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(most + 1)
    except OSError as error:
        fix = None if os.path.lexists(path) else "name the folder that holds it, or make it first"
        raise refusal(code, f"{what} cannot be read: {error.strerror}", where=str(path), fix=fix) from None
    flaw = mode_flaw(mode) if private else None
    if flaw:
        raise refusal(code, f"{what}: {flaw}", where=str(path), fix=f"chmod 600 {path}")
    if len(data) > most:
        raise refusal(code, f"{what} has more than {most} bytes", where=str(path))
    return data
