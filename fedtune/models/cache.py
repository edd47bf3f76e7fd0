"""The folder of converted models: each entry is there whole or not at all, made by one process at a time.

    CACHE/converted/<key>/       a GGUF file as safetensors with its tokenizer
    CACHE/quantized/<key>/       the same, quantized
    CACHE/fingerprints/<key>     SHA-256 of a large file, kept with the size and time it was computed for

Deleting any of it is safe: it is made again when it is next needed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from safetensors import SafetensorError

from fedtune.config.schema import ModelConfig
from fedtune.errors import MachineError, Problem

__all__ = ["cache_folder", "cache_key", "disk_errors", "file_sha256", "make_once"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_REFUSED = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ENOENT,
        errno.EIO,
        errno.ENAMETOOLONG,
    }
)


def cache_folder(config: ModelConfig) -> Path:
    """Return ``model.cache_dir``, or ``$FEDTUNE_CACHE_DIR``, or ``~/.cache/fedtune``."""
    folder = config.cache_dir or os.environ.get("FEDTUNE_CACHE_DIR") or "~/.cache/fedtune"
    return Path(folder).expanduser()


def cache_key(*parts: str) -> str:
    """Return a name for an entry made from these parts; different parts give different names."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return ``folder``, made by ``make`` if it is not there yet.

    Guarantees:
        * ``folder`` appears under its name only when ``make`` has returned and its files are on the disk.
        * Of several processes that ask at once, one makes it; the others wait and then find it.
        * What a killed process left half made is removed by the next one.

    Args:
        folder: A folder under the cache.
        make: Fills the empty folder it is given.

    Raises:
        MachineError: FT802, the disk is full or does not let us write.
    """
    if folder.is_dir():
        return folder
    with disk_errors(folder, elsewhere="set model.cache_dir or $FEDTUNE_CACHE_DIR to a folder elsewhere"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if folder.is_dir():
                return folder
            partial = folder.with_name(f".{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                make(partial)
                for file in partial.iterdir():
                    _sync(file)
                _sync(partial)
                os.rename(partial, folder)
                _sync(folder.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
    return folder


def file_sha256(path: Path, cache: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    The result is kept in ``cache``, so that gigabytes are not read again at each start, and is computed
    anew when the file's path, size or modification time is another.

    Raises:
        OSError: The file cannot be read. A cache that cannot be written is no error.
    """
    status = path.stat()
    stamp: dict[str, str | int] = {
        "path": str(path.resolve()),
        "size": status.st_size,
        "modified_ns": status.st_mtime_ns,
    }
    note = cache / "fingerprints" / cache_key(str(path.resolve()))
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
        if {key: kept[key] for key in stamp} == stamp:
            return str(kept["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: compute it
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    temporary = note.with_name(f".{note.name}.{os.getpid()}")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(stamp | {"sha256": digest}), encoding="utf-8")
        os.replace(temporary, note)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
    return digest


@contextmanager
def disk_errors(folder: Path, *, elsewhere: str) -> Iterator[None]:
    """Turn what a disk refuses into a MachineError; other errors pass.

    Args:
        folder: What was being written, for an error that does not say.
        elsewhere: How to write to another disk, as the end of "..., or ".

    Raises:
        MachineError: FT802.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _error_number(error)
        if number not in _FULL | _REFUSED:
            raise
        what, remedy = (
            ("is full", "free some space there")
            if number in _FULL
            else ("cannot be written", "make it writable")
        )
        raise MachineError(
            Problem(
                code="FT802",
                what=f"the cache of models {what} ({os.strerror(number)})",
                where=str(getattr(error, "filename", None) or folder),
                fix=f"{remedy}, or {elsewhere}",
            )
        ) from error


def _error_number(error: Exception) -> int:
    """The errno; safetensors has it in its text alone. 0 for an error that is not the system's."""
    if isinstance(error, OSError):
        return error.errno or 0
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number.group(1)) if number else 0


def _sync(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)
