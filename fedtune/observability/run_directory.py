"""A run directory: one folder that holds all of a run, written by one process at a time.

    config.yaml          the resolved configuration
    rounds.jsonl         append-only events; see events.py
    checkpoints/NNNN/    what is needed to go on after round NNNN
    adapter/             the final adapter in PEFT format, with a model card
    report.html          drawn from rounds.jsonl
    .lock                held while a process writes here; holds its pid

Guarantees:

* Two processes never write one run: the lock is the kernel's, so it ends with its process, however that ends.
* A file or a checkpoint is there whole or not at all, whatever happens while it is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from fedtune.errors import Problem, RunError
from fedtune.observability.disk import (
    TEMPORARY_SUFFIX,
    disk_errors,
    write_atomic,
    write_folder_atomic,
)
from fedtune.observability.events import EventLog
from fedtune.observability.lock import LockHeldError, take_lock

__all__ = ["RunDirectory", "checkpoint_rounds", "events_path"]

_LOCK = ".lock"
_EVENTS = "rounds.jsonl"


class RunDirectory:
    """One run's folder, open for writing. Make one with ``create``; close it, or use ``with``.

    Attributes:
        path: The folder.
        resumed: Whether it already held a run.
        events: The event log, open for appending.
    """

    def __init__(self, path: Path, *, lock: int, resumed: bool, events: EventLog) -> None:
        self.path = path
        self.resumed = resumed
        self.events = events
        self._lock = lock

    @classmethod
    def create(cls, path: Path, *, resume: bool = False) -> RunDirectory:
        """Take a folder for writing, making it if needed.

        Args:
            path: ``runs_dir/name``.
            resume: Go on with the run that is there. Without one there, a new run begins.

        Raises:
            RunError: FT701 if a run is there and ``resume`` is false, or the folder holds something else;
                FT702 if another process writes it; FT703 or FT704 if its log cannot be continued; FT705 or
                FT707 if it cannot be written.
        """
        with disk_errors(path, kept="nothing was changed"):
            path.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(path)
        try:
            exists = _holds_run(path, resume=resume)
            with disk_errors(path, kept="everything that was there"):
                _sweep(path)
            events = EventLog(path / _EVENTS)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, lock=lock, resumed=exists, events=events)

    def write_file(self, name: str, data: bytes) -> Path:
        """Write one file of the run atomically and return its path.

        Args:
            name: Path inside the run directory; folders on the way are made.
            data: The whole content.

        Raises:
            RunError: FT705 or FT707.
        """
        target = self.path / name
        with disk_errors(target, kept=self._kept()):
            target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, data, kept=self._kept())
        return target

    def write_config(self, text: str) -> Path:
        """Write the resolved configuration, as YAML text, to config.yaml."""
        return self.write_file("config.yaml", text.encode())

    def checkpoint_path(self, round: int) -> Path:
        """Return the folder of the checkpoint after ``round``, which is there only when it is complete."""
        return self.path / "checkpoints" / f"{round:04d}"

    def write_checkpoint(self, round: int, files: Mapping[str, bytes]) -> Path:
        """Write a checkpoint whole or not at all, replacing an older one of the same round.

        Args:
            round: The round that is complete.
            files: File name to content.

        Raises:
            RunError: FT705 or FT707; earlier checkpoints are untouched.
        """
        target = self.checkpoint_path(round)
        write_folder_atomic(target, files, kept=self._kept())
        return target

    def checkpoints(self) -> tuple[int, ...]:
        """Return the rounds that have a complete checkpoint, in order."""
        return checkpoint_rounds(self.path)

    def _kept(self) -> str:
        rounds = self.checkpoints()
        checkpoint = f"the checkpoint after round {rounds[-1]}" if rounds else "no checkpoint yet"
        return f"all events so far, {checkpoint}"

    def close(self) -> None:
        """Release the log and the lock. Closing twice is fine."""
        self.events.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def events_path(run: Path) -> Path:
    """Return the event log of a run that is to be read; nothing is opened or locked.

    Raises:
        RunError: FT706 if there is no run here.
    """
    if not (run / _EVENTS).is_file():
        raise RunError(
            Problem(
                code="FT706",
                what=f"there is no run here: {_EVENTS} is missing",
                where=str(run),
                fix="give the folder of a run, such as runs/demo; `fedtune simulate` makes one",
            )
        )
    return run / _EVENTS


def checkpoint_rounds(run: Path) -> tuple[int, ...]:
    """Return the rounds of a run that have a complete checkpoint, in order."""
    folders = (run / "checkpoints").glob("[0-9]*")
    return tuple(sorted(int(folder.name) for folder in folders if folder.name.isdecimal()))


def _holds_run(path: Path, *, resume: bool) -> bool:
    entries = {entry.name for entry in path.iterdir() if not _is_ours_and_empty(entry)}
    if not entries:
        return False
    if not entries & {_EVENTS, "config.yaml", "checkpoints"}:
        raise RunError(
            Problem(
                code="FT701",
                what=f"the folder holds something that is not a run: {', '.join(sorted(entries)[:5])}",
                where=str(path),
                fix="give the run another name= or runs_dir=; fedtune writes only into folders of its own",
            )
        )
    if not resume:
        raise RunError(
            Problem(
                code="FT701",
                what=f"there is already a run named {path.name!r}",
                where=str(path),
                fix="go on with it by resume=true, or give the new one another name=",
            )
        )
    return True


def _is_ours_and_empty(entry: Path) -> bool:
    """Whether this says nothing: our lock, a file in the making, or a log without a line."""
    name = entry.name
    if name == _LOCK or (name.startswith(".") and name.endswith(TEMPORARY_SUFFIX)):
        return True
    return name == _EVENTS and entry.stat().st_size == 0


def _sweep(path: Path) -> None:
    """Delete files in the making that a killed process left."""
    for folder in (path, path / "checkpoints"):
        for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()


def _take_lock(path: Path) -> int:
    try:
        return take_lock(path / _LOCK, mode=0o644)
    except LockHeldError as held:
        raise RunError(
            Problem(
                code="FT702",
                what=f"another process is writing this run: pid {held.pid or 'not yet known'}",
                where=str(path),
                fix="wait until it ends or stop it, or give this run another name=",
            )
        ) from None
