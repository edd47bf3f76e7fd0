"""Writing so that a file is there whole or not at all, and saying what is kept when the disk refuses."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from fedtune.errors import Problem, RunError

__all__ = [
    "TEMPORARY_SUFFIX",
    "disk_errors",
    "sync_directory",
    "write_all",
    "write_atomic",
    "write_folder_atomic",
]

TEMPORARY_SUFFIX = ".tmp"
"""Ends the names of files in the making; such a file left by a crash means nothing and may be deleted."""

# EFBIG and EDQUOT are the limits of a user where ENOSPC is the disk's: the remedy is the same.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextlib.contextmanager
def disk_errors(path: Path, *, kept: str, again: str | None = None) -> Iterator[None]:
    """Turn an OSError into a RunError that says what is kept.

    Args:
        path: What was being written.
        kept: What is on the disk all the same, as the end of "kept: ...".
        again: What to do once the cause is gone, where the file is no part of a run.

    Raises:
        RunError: FT705 for a full disk, quota or file size limit; FT707 for any other refusal.
    """
    try:
        yield
    except OSError as error:
        larger = "" if again else ", or move the run's folder to a larger disk and set runs_dir= to it"
        then = again or "go on with resume=true"
        if error.errno in _FULL:
            problem = Problem(
                code="FT705",
                what=f"there is no space left to write this file ({error.strerror}); kept: {kept}",
                where=str(path),
                fix=f"free some space{larger}; then {then}",
            )
        else:
            problem = Problem(
                code="FT707",
                what=f"this cannot be written ({error.strerror}); kept: {kept}",
                where=str(error.filename or path),
                fix=f"check that the folder is there, is writable and its disk healthy; then {then}",
            )
        raise RunError(problem) from error


def write_all(file: int, data: bytes) -> None:
    """Write every byte: one os.write may take fewer than it was given."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync_directory(path: Path) -> None:
    """Make a new or renamed entry of this directory survive a power cut."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


_UNTOUCHED = "what was there before under this name, and the rest of the run"


def write_atomic(
    path: Path, data: bytes, *, kept: str = _UNTOUCHED, again: str | None = None, private: bool = False
) -> None:
    """Write a file under a temporary name, fsync it, rename it: a reader sees the old file or the new one.

    Args:
        path: The file, in a folder that is there.
        data: The whole content.
        kept: Said in the error, as in disk_errors.
        again: Likewise.
        private: Whether its owner alone may read it, from the first byte.

    Raises:
        RunError: FT705 or FT707; ``path`` is then as it was before, and nothing temporary is left.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with disk_errors(path, kept=kept, again=again):
        try:
            _write_new(temporary, data, mode=0o600 if private else 0o644)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def write_folder_atomic(path: Path, files: Mapping[str, bytes], *, kept: str = _UNTOUCHED) -> None:
    """Write a folder of files under a temporary name and rename it: it is there whole or not at all.

    An older folder of this name is replaced. A crash between its removal and the renaming leaves neither.

    Args:
        path: The folder; the folders above it are made.
        files: File name to content.
        kept: Said in the error, as in disk_errors.

    Raises:
        RunError: FT705 or FT707; ``path`` is then as it was before, and nothing temporary is left.
    """
    new = path.with_name(f".{path.name}.new{TEMPORARY_SUFFIX}")
    old = path.with_name(f".{path.name}.old{TEMPORARY_SUFFIX}")
    with disk_errors(path, kept=kept):
        try:
            shutil.rmtree(new, ignore_errors=True)  # a killed process may have left one
            new.mkdir(parents=True)
            for name, data in files.items():
                _write_new(new / name, data)
            sync_directory(new)
            if path.exists():  # a folder with files in it cannot be renamed over
                os.rename(path, old)
            os.rename(new, path)
            sync_directory(path.parent)
        except BaseException:
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def _write_new(path: Path, data: bytes, mode: int = 0o644) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        write_all(file, data)
        os.fsync(file)
    finally:
        os.close(file)
