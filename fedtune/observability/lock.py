"""One process at a time: a lock of the kernel's, which ends with its process, however that ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from fedtune.errors import MachineError, Problem
from fedtune.observability.disk import disk_errors

__all__ = ["LockHeldError", "only_one", "take_lock"]


class LockHeldError(Exception):
    """Another process holds the lock.

    Attributes:
        pid: Of that process, in digits; empty in the moment before it is written.
    """

    def __init__(self, pid: str) -> None:
        super().__init__(pid)
        self.pid = pid


def take_lock(path: Path, *, mode: int = 0o600) -> int:
    """Take the lock of this file and write this process's pid into it.

    Args:
        path: The file; it is made where there is none, and stays.
        mode: Of a new file.

    Returns:
        A file descriptor; closing it gives the lock back.

    Raises:
        LockHeldError: Another process holds it.
        OSError: The file cannot be opened.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with contextlib.suppress(OSError):  # the pid is for a person; a full disk is reported by what follows
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise LockHeldError(holder) from None
    except BaseException:
        os.close(lock)
        raise
    return lock


@contextlib.contextmanager
def only_one(path: Path, taken: Problem) -> Iterator[None]:
    """Hold a lock for as long as the block runs.

    Args:
        path: As in `take_lock`.
        taken: What to say where another process holds it.

    Raises:
        MachineError: ``taken``.
        RunError: FT705 or FT707, the file cannot be opened.
    """
    with disk_errors(path, kept="nothing was started", again="start again"):
        try:
            lock = take_lock(path)
        except LockHeldError:
            raise MachineError(taken) from None
    try:
        yield
    finally:
        os.close(lock)
