"""A daemon of the command line: its signals, and how another command finds and ends it."""

from __future__ import annotations

import fcntl
import os
import signal
import threading
import time
from pathlib import Path

from fedtune.errors import MachineError, Problem

__all__ = ["holder", "stop_process", "stops_on_signals"]

STOP_SECONDS = 120.0
LOOK_SECONDS = 0.1


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


def holder(lock: Path, what: str) -> int | None:
    """Return the process that holds a lock file, or None if there is none.

    Args:
        lock: The file, which holds the pid.
        what: What it is, for a message.

    Raises:
        MachineError: FT689, the file belongs to another user, or holds no pid.
    """
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        try:
            with lock.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            # Whoever has just begun has the lock a moment before its pid is in there.
            if pid := _pid(lock):
                return pid
            time.sleep(LOOK_SECONDS)
        except PermissionError:
            raise MachineError(_stays(what, "it belongs to another user", where=str(lock))) from None
        else:
            return None
    raise MachineError(_stays(what, "its lock file does not say which process it is", where=str(lock)))


def stop_process(lock: Path, what: str) -> bool:
    """Ask the process that holds a lock file to end, and wait; False if there is none.

    Args:
        lock: As in `holder`.
        what: Likewise.

    Raises:
        MachineError: FT689, it does not end, or belongs to another user.
    """
    pid = holder(lock, what)
    if pid is None:
        return False
    where = f"process {pid}"
    try:
        os.kill(pid, signal.SIGTERM)
    except PermissionError:
        raise MachineError(_stays(what, "it belongs to another user", where=where, pid=pid)) from None
    except ProcessLookupError:
        return False
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline:
        if holder(lock, what) != pid:
            return True
        time.sleep(LOOK_SECONDS)
    why = f"it has not ended within {STOP_SECONDS:g} s"
    raise MachineError(_stays(what, why, where=where, pid=pid))


def _pid(lock: Path) -> int | None:
    text = lock.read_bytes()[:20].strip()
    return (int(text) or None) if text.isdigit() else None


def _stays(what: str, why: str, *, where: str, pid: int | None = None) -> Problem:
    killed = "" if pid is None else f", or by `kill -9 {pid}`: nothing is lost by that"
    return Problem(
        code="FT689",
        what=f"{what} cannot be stopped: {why}",
        where=where,
        fix=f"stop it as its user{killed}",
    )
