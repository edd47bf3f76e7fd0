"""Records of decisions: JSON lines of which each is on the disk before anything is done on its strength.

A crash may cut off the line that was being written; the next one begins on a line of its own, and a reader
knows a cut line by its missing end. Any other line that cannot be read is damage, and nobody reads over it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedtune.observability.disk import disk_errors, sync_directory, write_all

__all__ = ["DamagedRecordError", "append_record", "read_records"]

T = TypeVar("T")


class DamagedRecordError(Exception):
    """A line that is not as it was written.

    Attributes:
        line: Its number; None where the file itself cannot be read.
    """

    def __init__(self, line: int | None) -> None:
        super().__init__(line)
        self.line = line


def append_record(path: Path, record: Mapping[str, Any], *, kept: str, again: str | None = None) -> None:
    """Write a record down, durably; several processes may do so at once.

    Args:
        path: JSON lines; made if it is not there, its owner's alone.
        record: What JSON can hold.
        kept: Said in an error, as in `fedtune.observability.disk.disk_errors`.
        again: Likewise.

    Raises:
        RunError: FT705 or FT707, it cannot be written.
    """
    line = json.dumps({"v": 1, **record}).encode() + b"\n"
    with disk_errors(path, kept=kept, again=again):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            size = os.fstat(file).st_size
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            write_all(file, (b"\n" if torn else b"") + line)
            os.fsync(file)
        finally:
            os.close(file)
        if size == 0:
            sync_directory(path.parent)


def read_records(path: Path, parse: Callable[[dict[str, Any]], T]) -> list[T]:
    """Return what was written down, in its order; nothing of a file that is not there.

    Args:
        path: As `append_record` writes it.
        parse: Makes of a record what it stands for; a ValueError, KeyError or TypeError says that it is none.

    Raises:
        DamagedRecordError: The file or a line of it cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError:
        raise DamagedRecordError(None) from None
    found = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            found.append(parse(_record(line)))
        except (ValueError, KeyError, TypeError, RecursionError):
            if number == len(lines) or not line.endswith(b"}"):
                continue  # cut off by a crash before anything was done on its strength
            raise DamagedRecordError(number) from None
    return found


def _record(line: bytes) -> dict[str, Any]:
    record = json.loads(line)
    if not isinstance(record, dict) or record.get("v") != 1:
        raise ValueError("not an object of version 1")
    return record
