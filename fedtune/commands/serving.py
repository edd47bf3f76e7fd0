"""A daemon of the command line: its signals, and a second line on the screen for what goes to its log."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

from fedtune.errors import MachineError, Problem

__all__ = ["holder", "stop_process", "stops_on_signals"]

STOP_SECONDS = 120.0


def stops_on_signals() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set; a second Ctrl-C ends the process at once."""
    stop = threading.Event()

    def end(number: int, _: object) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, end)
    return stop


def holder(lock: Path) -> int | None:
    """Return the process that holds a lock file; None if none does."""
    import fcntl  # noqa: PLC0415

    try:
        with lock.open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or b"0")
    except FileNotFoundError:
        pass
    return None


def stop_process(lock: Path, what: str) -> bool:
    """Ask the process that holds a lock file to end, and wait; False if there is none.

    Args:
        lock: The file, which holds the pid.
        what: What it is, for a message.

    Raises:
        MachineError: FT689, it does not end, or belongs to another user.
    """
    pid = holder(lock)
    if pid is None:
        return False
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise MachineError(_stays(what, pid, "it belongs to another user")) from None
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.2)
    raise MachineError(_stays(what, pid, f"it has not ended within {STOP_SECONDS:g} s"))


def _stays(what: str, pid: int, why: str) -> Problem:
    return Problem(
        code="FT689",
        what=f"{what} cannot be stopped: {why}",
        where=f"process {pid}",
        fix=f"stop it as its user, or by `kill -9 {pid}`: nothing is lost by that",
    )
