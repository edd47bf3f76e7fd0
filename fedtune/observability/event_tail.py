"""Following an event log that another process writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fedtune.observability.events import Event, RoundFinished, parse_event

__all__ = ["EventTail"]


class EventTail:
    """Reads what was appended since it was last asked, and tells observers of it.

    Args:
        path: The log; it may not be there yet.
        observers: Called with each event, in order.
        offset: Bytes at its beginning that are passed over.
    """

    def __init__(self, path: Path, observers: Sequence[Callable[[Event], None]], *, offset: int = 0) -> None:
        self._path, self._observers = path, observers
        self._offset = offset
        self.last: Event | None = None
        self.finished_rounds = 0

    @classmethod
    def at_end(cls, path: Path, observers: Sequence[Callable[[Event], None]]) -> EventTail:
        """Return one that tells of what is appended from now on."""
        return cls(path, observers, offset=path.stat().st_size if path.exists() else 0)

    def read(self) -> None:
        """Tell of the lines that are complete and new.

        Raises:
            RunError: FT703 or FT704, a line that this fedtune cannot read.
        """
        try:
            with self._path.open("rb") as log:
                log.seek(self._offset)
                lines = log.read()
        except FileNotFoundError:
            return
        whole = lines[: lines.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            self.last = event = parse_event(line, where=str(self._path))
            if isinstance(event, RoundFinished):
                self.finished_rounds = event.round
            for observer in self._observers:
                observer(event)
