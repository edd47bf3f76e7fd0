"""What of a coordinator's folder belongs into a backup, and what a backup may hold.

======================================  ==========================================================
``ca.key ca.pem coordinator.key``       the authority and the coordinator's identity
``server.yaml``                         settings
``roster*.json``                        the roster and its earlier versions
``nodes/ tls/ bundles/``                enrolled sites, the server's certificate, answers to sites
``state/superlink.db``                  what Flower's SuperLink knows
``state/notified.json``                 which notices about certificates were given
``runs/``                               events, configurations, checkpoints, journals, transcripts
======================================  ==========================================================

Logs, locks and files in the making are left out.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from fedtune.coordinator.problems import refusal
from fedtune.observability.disk import TEMPORARY_SUFFIX

__all__ = [
    "DATABASE",
    "NOTIFIED",
    "RUNS",
    "belongs",
    "files_below",
    "is_private",
    "left_out",
    "plain_files",
    "stored_mode",
]

DATABASE: Final = "state/superlink.db"
NOTIFIED: Final = "state/notified.json"
RUNS: Final = "runs"

_FILES: Final = ("ca.key", "ca.pem", "coordinator.key", "server.yaml", "roster*.json")
_FOLDERS: Final = ("nodes", "tls", "bundles")
_LONGEST_NAME: Final = 255
_DEEPEST: Final = 16


def belongs(name: str) -> bool:
    """Whether a path below the folder, with ``/``, names a file of a backup.

    Guarantee: such a path leads to no place outside the folder it is put into, on any file system.
    """
    parts = name.split("/")
    if len(parts) > _DEEPEST or not all(_is_safe(part) for part in parts):
        return False
    if len(parts) == 1:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in _FILES)
    return name in (DATABASE, NOTIFIED) or (parts[0] in (*_FOLDERS, RUNS) and not _is_passing(parts[-1]))


def _is_safe(part: str) -> bool:
    if part in ("", ".", "..") or "\\" in part or not part.isprintable():
        return False
    return len(part.encode()) <= _LONGEST_NAME


def _is_passing(name: str) -> bool:
    """A lock, or a file in the making."""
    return name == ".lock" or (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX))


def is_private(name: str) -> bool:
    """Whether only its owner may read this file of a backup."""
    return name.endswith(".key") or name == DATABASE


def stored_mode(name: str, mode: int) -> int:
    """The mode with which a backup keeps a file: nobody but its owner writes it, and nothing is run."""
    return 0o600 if is_private(name) else 0o600 | (mode & 0o044)


def plain_files(folder: Path) -> Iterator[str]:
    """Names of the files of a backup but for the database and the runs, in a fixed order.

    Raises:
        FederationError: FT670, there is a link, or a name that a backup does not take.
    """
    yield from sorted(each.name for each in folder.iterdir() if belongs(each.name))
    for part in _FOLDERS:
        yield from files_below(folder, folder / part)
    if (folder / NOTIFIED).is_file():
        yield NOTIFIED


def files_below(folder: Path, inside: Path) -> Iterator[str]:
    """Names, from ``folder`` on, of all files below ``inside`` that belong into a backup, in a fixed order.

    Raises:
        FederationError: FT670, as `plain_files`.
    """
    for current, folders, names in os.walk(inside):
        here = PurePosixPath(Path(current).relative_to(folder))
        folders[:] = sorted(each for each in folders if not _is_passing(each))
        for link in (each for each in folders if (Path(current) / each).is_symlink()):
            what = "a backup takes no links, and this is one"
            raise refusal("FT670", what, where=str(Path(current) / link))
        for each in sorted(names):
            if _is_passing(each):
                continue
            if not belongs(str(here / each)):
                what = "a backup does not take a file of this name"
                raise refusal("FT670", what, where=ascii(str(Path(current) / each)))
            yield str(here / each)


def left_out(folder: Path) -> tuple[str, ...]:
    """Names in the folder itself that no backup holds; for ``state`` see above."""
    known = {*_FOLDERS, RUNS, "state"}
    names = sorted(each.name for each in folder.iterdir())
    return tuple(name for name in names if name not in known and not belongs(name) and not _is_passing(name))
