"""An append-only file of JSON lines that outlives a crash and is shared between processes.

A line is on disk (fsync) before `append` returns. A last line without its end is one that a crash cut off
before anything was done on its strength, so it is dropped; any other damage is refused.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from fedtune.secagg.canonical import digest
from fedtune.secagg.problems import refusal

__all__ = ["Ledger"]


class Ledger:
    """Reads and appends JSON objects, one a line.

    Args:
        path: The file; created with its first line, readable by its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """Every complete line.

        Raises:
            SecureAggregationError: FT919 with the number of the damaged line.
        """
        with self._locked() as file:
            return self._lines(file)

    def head(self) -> bytes:
        """Hash chain over the complete lines, 32 bytes, zero for none: each hashed onto those before it."""
        head = bytes(32)
        with self._locked() as file:
            file.seek(0)
            for line in file.read().split(b"\n")[:-1]:
                head = digest("ledger line", head, line)
        return head

    def append(self, line: dict[str, Any], *, unless: Callable[[list[dict[str, Any]]], None]) -> None:
        """Add one line, durably.

        Args:
            line: What JSON can hold.
            unless: Called with all lines so far while other processes wait; it raises to forbid.

        Raises:
            SecureAggregationError: FT919, the file is damaged or cannot be written.
        """
        with self._locked() as file:
            unless(self._lines(file))
            encoded = json.dumps(line, sort_keys=True).encode() + b"\n"
            try:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
                file.seek(0, os.SEEK_END)
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            except OSError as error:
                raise refusal("FT919", f"cannot be written: {error}", where=str(self.path)) from None

    @contextmanager
    def _locked(self) -> Iterator[BinaryIO]:
        try:
            existed = self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            if not existed:
                _sync_folder(self.path.parent)
        except OSError as error:
            raise refusal("FT919", f"cannot be opened: {error}", where=str(self.path)) from None
        with os.fdopen(descriptor, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            yield file

    def _lines(self, file: BinaryIO) -> list[dict[str, Any]]:
        file.seek(0)
        complete = file.read().split(b"\n")[:-1]
        parsed = []
        for number, raw in enumerate(complete, start=1):
            try:
                line = json.loads(raw)
            except ValueError:
                line = None
            if not isinstance(line, dict) or line.get("v") != 1:
                raise refusal("FT919", f"line {number} is damaged", where=f"{self.path}, line {number}")
            parsed.append(line)
        return parsed


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
