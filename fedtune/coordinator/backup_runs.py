"""A run as it is at one moment, though it is being written: what a restored run needs to go on.

A run goes on from the last round that is both finished in its events and kept as a checkpoint, and two
checkpoints are kept. So the order matters: events that were read before the checkpoints may name no round
that still has one, and the run would begin anew. Here a run's files are opened in this order,

1. checkpoints: each is whole once it is there, and an open file stays readable after it was removed,
2. journals and transcripts of secure aggregation: they only grow, and count as long as they are now; a
   round's journal is deleted after its checkpoint was written and its end was recorded,
3. events: they only grow, and know at least of every round whose checkpoint was opened but the last,

and then the checkpoints are looked at again. If they changed, all is opened anew. So what is read is what a
power cut could have left between the first step and the last, a few milliseconds; from that a run goes on.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fedtune.coordinator.backup_content import RUNS, files_below
from fedtune.coordinator.problems import refusal

__all__ = ["OpenFile", "opened", "run_files"]

_EVENTS: Final = "rounds.jsonl"
_CHECKPOINTS: Final = "checkpoints"
_SECURE: Final = "secagg"
_TRIES, _WAIT_SECONDS = 100, 0.05


@dataclass(frozen=True, kw_only=True)
class OpenFile:
    """A file, and how it was when it was opened.

    Attributes:
        name: Path from the coordinator's folder on, with ``/``.
        file: Open for reading, at its beginning.
        size: In bytes; it may have grown since.
        mode: Permissions.
        changed: When it was last changed, in nanoseconds since 1970.
    """

    name: str
    file: BinaryIO
    size: int
    mode: int
    changed: int


def opened(folder: Path, name: str) -> OpenFile:
    """Open a file that is no link.

    Raises:
        FederationError: FT670, it is no regular file.
        OSError: It cannot be opened.
    """
    path = folder / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise refusal("FT670", "a backup takes no links, and this is one", where=str(path)) from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise refusal("FT670", "a backup takes files alone, and this is something else", where=str(path))
    return OpenFile(
        name=name,
        file=os.fdopen(descriptor, "rb"),
        size=status.st_size,
        mode=stat.S_IMODE(status.st_mode),
        changed=status.st_mtime_ns,
    )


def run_files(folder: Path) -> Iterator[OpenFile]:
    """The files of all runs; each is read before the next is asked for, and its size says how far.

    Raises:
        FederationError: FT670, there is a link, or a run did not hold still for a moment.
        OSError: A file cannot be opened.
    """
    runs = sorted(_run_folders(folder / RUNS))
    for run in runs:
        with ExitStack() as files:
            yield from _state(folder, run, files)
    for name in files_below(folder, folder / RUNS):
        if not any(_is_state(Path(name), run.relative_to(folder)) for run in runs):
            try:
                held = opened(folder, name)
            except FileNotFoundError:  # removed since it was listed
                continue
            with held.file:
                yield held


def _run_folders(runs: Path) -> Iterator[Path]:
    for current, folders, names in os.walk(runs):
        if _EVENTS in names:
            folders.clear()
            yield Path(current)


def _is_state(name: Path, run: Path) -> bool:
    inside = name.relative_to(run).parts if name.is_relative_to(run) else ("",)
    return inside[0] in (_CHECKPOINTS, _SECURE, _EVENTS)


def _state(folder: Path, run: Path, files: ExitStack) -> list[OpenFile]:
    for _ in range(_TRIES):
        with ExitStack() as tried, suppress(FileNotFoundError):
            before = _checkpoints(run)
            held = [
                _kept_open(folder, name, tried)
                for part in (_CHECKPOINTS, _SECURE)
                for name in files_below(folder, run / part)
            ]
            held.append(_kept_open(folder, (run / _EVENTS).relative_to(folder).as_posix(), tried))
            if _checkpoints(run) == before:
                files.push(tried.pop_all())
                return held
        time.sleep(_WAIT_SECONDS)
    raise refusal(
        "FT670",
        "the run's checkpoints changed each time they were looked at",
        where=str(run),
        fix="try again",
    )


def _kept_open(folder: Path, name: str, files: ExitStack) -> OpenFile:
    held = opened(folder, name)
    files.enter_context(held.file)
    return held


def _checkpoints(run: Path) -> list[tuple[str, int]]:
    """Names of the checkpoints, and which folder each is: one that is written again is another."""
    try:
        with os.scandir(run / _CHECKPOINTS) as entries:
            return sorted((each.name, each.inode()) for each in entries)
    except FileNotFoundError:
        return []
