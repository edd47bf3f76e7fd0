"""The server's journal of one attempt: enough to finish it after a crash, by living it once more.

The server's state is a function of what arrived and of when each trip was closed; so that is what the
journal holds, and recovery feeds it to the same code. A trip's end is on disk (fsync) before the requests
of the next trip go out, so no client ever sees sets that a restarted server would not remember.

File: records of one kind byte, eight bytes of length, SHA-256 of the payload, and the payload. The last
record may be cut off by a crash; any other damage is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from fedtune.secagg.problems import refusal

__all__ = ["ANSWER", "CLOSED", "OPENED", "ServerJournal", "read_journal"]

RecordKind = Literal[1, 2, 3]
OPENED: Final[RecordKind] = 1
ANSWER: Final[RecordKind] = 2
CLOSED: Final[RecordKind] = 3
_HEADER: Final = 1 + 8 + 32


class ServerJournal:
    """Appends to an attempt's file.

    Args:
        path: Created, or continued after `read_journal` (a cut-off last record is removed).

    Raises:
        SecureAggregationError: FT926, the file is damaged or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            if path.exists():
                end = sum(_HEADER + len(payload) for _, payload in read_journal(path))
                os.truncate(path, end)
            else:
                path.touch(mode=0o600)
        except OSError as error:
            raise refusal("FT926", f"cannot be opened: {error}", where=str(path)) from None

    def append(self, kind: RecordKind, payload: bytes, *, durable: bool) -> None:
        """Add one record; with `durable` it is on disk, with all before it, on return.

        Raises:
            SecureAggregationError: FT926, for instance on a full disk.
        """
        header = bytes([kind]) + len(payload).to_bytes(8, "big") + hashlib.sha256(payload).digest()
        try:
            with self._path.open("ab") as file:
                file.write(header)
                file.write(payload)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise refusal("FT926", f"cannot be written: {error}", where=str(self._path)) from None


def read_journal(path: Path) -> Iterator[tuple[RecordKind, bytes]]:
    """The records of a file, oldest first, one at a time (a masked vector may be large).

    Raises:
        SecureAggregationError: FT926 with the number of the damaged record.
    """
    size = path.stat().st_size
    kinds: dict[int, RecordKind] = {OPENED: OPENED, ANSWER: ANSWER, CLOSED: CLOSED}
    with path.open("rb") as file:
        number = 0
        while file.tell() + _HEADER <= size:
            number += 1
            header = file.read(_HEADER)
            length = int.from_bytes(header[1:9], "big")
            if file.tell() + length > size:
                return
            payload = file.read(length)
            kind = kinds.get(header[0])
            if kind is None or hashlib.sha256(payload).digest() != header[9:]:
                if file.tell() == size and kind is not None:
                    return  # the last one, cut off between its length and its end
                raise refusal("FT926", f"record {number} is damaged", where=str(path))
            yield kind, payload
