"""A process's structured log: JSON lines in files that are bounded, its owner's alone, and in nobody's way.

What a line says is in log_lines.py. One process writes one log: two that rotate the same files would lose
lines.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from fedtune.observability.disk import disk_errors
from fedtune.observability.log_lines import CARRIERS, LineFormatter, log_context, words_of

__all__ = ["JsonLog", "log_context", "log_to", "words_of"]

MOST_BYTES: Final = 8 * 2**20
OLD_FILES: Final = 4
LEAST_BYTES: Final = 2**17
"""More than any line has."""

_PRIVATE: Final = 0o600

logger = logging.getLogger(__name__)


class JsonLog(RotatingFileHandler):
    """Writes records to ``path``, and older ones to ``path.1``, ``path.2`` and so on.

    Guarantees:
        * All files together have at most ``most_bytes * (old_files + 1)`` bytes.
        * Every line is whole. One that a crash or a full disk cut off is cut away when the file is next
          opened.
        * No failure to write reaches who logged, or stderr. Lines that were lost are counted, and once there
          is room again a line says how many.

    Attributes:
        lost: Lines that could not be written since the last one that could.
    """

    def __init__(self, path: Path, *, most_bytes: int = MOST_BYTES, old_files: int = OLD_FILES) -> None:
        if most_bytes < LEAST_BYTES:
            raise ValueError(f"most_bytes must be at least {LEAST_BYTES}, got {most_bytes}")
        self.lost = 0
        super().__init__(path, maxBytes=most_bytes, backupCount=old_files, encoding="ascii", delay=True)
        self.setFormatter(LineFormatter())
        self.addFilter(_is_kept)

    def emit(self, record: logging.LogRecord) -> None:
        lost = self.lost
        super().emit(record)
        if not lost or self.lost > lost:
            return
        self.lost = 0
        super().emit(
            logger.makeRecord(logger.name, logging.WARNING, __file__, 0, "%d lines were lost", (lost,), None)
        )
        if self.lost:
            self.lost += lost

    def handleError(self, record: logging.LogRecord) -> None:
        """Forget the line, and what is left of it in memory. The inherited one prints it to stderr."""
        self.lost += 1
        stream, self.stream = self.stream, None  # opened again by the next line
        if stream is not None:
            with suppress(OSError, ValueError):
                stream.close()

    def _open(self) -> TextIOWrapper:
        file = os.open(self.baseFilename, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _PRIVATE)
        try:
            os.fchmod(file, _PRIVATE)
            _cut_torn_line(file)
            return open(file, "a", encoding="ascii")
        except BaseException:
            os.close(file)
            raise


@contextmanager
def log_to(
    folder: Path, name: str, *, most_bytes: int = MOST_BYTES, old_files: int = OLD_FILES
) -> Iterator[JsonLog]:
    """Write what this process logs to ``folder/name.jsonl``, until the block is left.

    From fedtune everything from INFO on is written, from all others what is a WARNING or worse. flwr, httpx
    and uvicorn are set to WARNING for every other handler too; flwr sets its own level when it is imported,
    so import it before. Start uvicorn with ``log_config=None``, or its lines do not come here. An exception
    that ends a thread is logged and not printed: its text may quote a row.

    Args:
        folder: Made if it is not there, its owner's alone.
        name: Of the log, one for each process.
        most_bytes: Largest size of one file, at least `LEAST_BYTES`.
        old_files: How many older ones are kept.

    Raises:
        RunError: FT705 or FT707, the folder cannot be made.
        ValueError: ``most_bytes`` is too small for a line.
    """
    with disk_errors(folder, kept="nothing was logged", again="start again"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = JsonLog(folder / f"{name}.jsonl", most_bytes=most_bytes, old_files=old_files)
    levels = {"fedtune": logging.INFO, **dict.fromkeys(CARRIERS, logging.WARNING)}
    before = {each: logging.getLogger(each).level for each in levels}
    hook = threading.excepthook
    for each, level in levels.items():
        logging.getLogger(each).setLevel(level)
    logging.getLogger().addHandler(handler)
    threading.excepthook = _log_end_of_thread
    try:
        yield handler
    finally:
        threading.excepthook = hook
        logging.getLogger().removeHandler(handler)
        for each, level in before.items():
            logging.getLogger(each).setLevel(level)
        handler.close()


def _is_kept(record: logging.LogRecord) -> bool:
    ours = record.name == "fedtune" or record.name.startswith("fedtune.")
    return record.levelno >= (logging.INFO if ours else logging.WARNING)


def _log_end_of_thread(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
        logger.error("an exception ended a thread", exc_info=ended.exc_value)


def _cut_torn_line(file: int) -> None:
    size = os.fstat(file).st_size
    start = max(0, size - LEAST_BYTES)
    tail = os.pread(file, LEAST_BYTES, start)
    end = start + tail.rfind(b"\n") + 1
    if end < size:
        os.ftruncate(file, end)
