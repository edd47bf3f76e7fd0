"""A site's audit log: append-only, hash-chained, signed with a key of its own.

Whoever holds the key can write another log from its first line on. So the head travels: in each message that
the site signs, and to a syslog on another machine if asked. A log in which a head that was seen elsewhere
does not occur was rewritten or cut.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import SysLogHandler
from pathlib import Path

from fedtune.errors import MachineError, Problem
from fedtune.observability.disk import sync_directory, write_all
from fedtune.secagg.identity import Identity
from fedtune.site.audit_chain import BrokenLineError, Chain, encoded
from fedtune.site.audit_events import Event, TailDropped, details
from fedtune.site.audit_problems import cut, damaged, incomplete, unusable

__all__ = ["AuditLog", "Verification", "heads_to_syslog", "verify_audit"]

logger = logging.getLogger(__name__)

_READ_BYTES = 2**20


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """How far a log was read: the bytes up to there, the last line with its newline, and the chain."""

    end: int
    last: bytes
    chain: Chain


class AuditLog:
    """Writes one log; several of them, in threads or processes, may write the same.

    Guarantees:
        * When `append` returns, the line is on the disk (fsync).
        * It never goes on with a log whose chain is broken, whose last line another key signed, or in which
          the last line that this object saw is no longer where it was.
        * A last line that a crash cut off, before anything was done on its strength, is cut away, and a
          `TailDropped` says so; one that lacks nothing but its newline is kept. No other damage is mended.

    Args:
        path: JSON lines; made at the first use, readable by its owner alone.
        key: The audit key, used for nothing else.
        on_head: Told the number and the head (32 bytes) of a line once it is on the disk. If it raises, that
            is logged, and the line stands.
        clock: Gives the time of a line, with its zone.
    """

    def __init__(
        self,
        path: Path,
        key: Identity,
        *,
        on_head: Callable[[int, bytes], None] | None = None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.path = path
        self._key = key
        self._on_head = on_head
        self._clock = clock
        self._lock = threading.Lock()
        self._place = _Place(end=0, last=b"", chain=Chain(signer=key.public))

    def append(self, event: Event) -> bytes:
        """Write an event down, durably.

        Returns:
            The new head, 32 bytes.

        Raises:
            MachineError: FT830, the file cannot be read or written; FT831, it is damaged; FT832, the last
                line that this object saw is gone. Nothing was written.
        """
        with self._open() as file:
            place, tail = self._caught_up(file)
            chain, kept = place.chain, b""
            events: tuple[Event, ...] = (event,)
            if (completed := _completed(chain, tail)) is not None:
                chain, kept = completed, tail + b"\n"
            elif tail:
                logger.warning("A crash cut off the last line of %s: dropped %d bytes.", self.path, len(tail))
                events = (TailDropped(bytes=len(tail), sha256=hashlib.sha256(tail).hexdigest()), event)
            data, last = kept, b""
            for written in events:
                last = encoded(chain, self._key, written.kind, details(written), self._clock()) + b"\n"
                chain = chain.after(last[:-1], check_signature=False)
                data += last
            self._write(file, data, at=place.end)
            self._place = _Place(end=place.end + len(data), last=last, chain=chain)
        self._pass_on(chain)
        return chain.head

    def head(self) -> bytes:
        """Head over all complete lines, 32 bytes; zeros for a log without any.

        Raises:
            MachineError: As `append`.
        """
        with self._open() as file:
            self._place, _ = self._caught_up(file)
            return self._place.chain.head

    def _pass_on(self, chain: Chain) -> None:
        if self._on_head is None:
            return
        try:
            self._on_head(chain.sequence, chain.head)
        except Exception:
            logger.warning("The head of line %d could not be passed on.", chain.sequence, exc_info=True)

    @contextmanager
    def _open(self) -> Iterator[int]:
        """Open the file and keep other threads and processes out of it."""
        with self._lock:
            try:
                existed = self.path.exists()
                file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise MachineError(unusable(self.path, error)) from error
            try:
                if not existed:
                    sync_directory(self.path.parent)
                fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
                yield file
            except OSError as error:
                raise MachineError(unusable(self.path, error)) from error
            finally:
                os.close(file)

    def _caught_up(self, file: int) -> tuple[_Place, bytes]:
        """Read on from the last line that was seen; returns the place, and an incomplete line after it.

        Of the lines that others wrote since, the last signature alone is checked: it covers the hash of each
        line before it.
        """
        place = self._place
        data = _read_from(file, place.end - len(place.last))
        if not data.startswith(place.last):
            raise MachineError(cut(self.path, place.chain.head, place.chain.sequence))
        *lines, tail = data[len(place.last) :].split(b"\n")
        chain = place.chain
        for number, line in enumerate(lines, start=1):
            try:
                chain = chain.after(line, check_signature=number == len(lines))
            except BrokenLineError as error:
                raise MachineError(damaged(self.path, chain.sequence + 1, error)) from None
        if not lines:
            return place, tail
        end = place.end + len(data) - len(place.last) - len(tail)
        return _Place(end=end, last=lines[-1] + b"\n", chain=chain), tail

    def _write(self, file: int, data: bytes, *, at: int) -> None:
        """Put data where the last complete line ends, in place of what stands there."""
        try:
            os.ftruncate(file, at)
            os.lseek(file, at, os.SEEK_SET)
            write_all(file, data)
            os.fsync(file)
        except OSError:
            with suppress(OSError):
                os.ftruncate(file, at)
            raise


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a check of a log found.

    Attributes:
        path: The log.
        lines: How many lines, from the first on, are as they were written.
        head: Head after them, 32 bytes.
        time: When the last of them was written, as it says; None for none.
        expected_line: The line whose head was expected, 0 for the head of an empty log; None where no head
            was expected or it is not there.
        bad_line: The first line that is wrong or missing; None for none.
        problem: What is wrong with it; None where the log is intact.
    """

    path: Path
    lines: int
    head: bytes
    time: str | None
    expected_line: int | None
    bad_line: int | None
    problem: Problem | None

    @property
    def intact(self) -> bool:
        """Whether nothing is wrong."""
        return self.problem is None


def verify_audit(path: Path, public_key: bytes, *, expected_head: bytes | None = None) -> Verification:
    """Check a log from its first line to its last.

    Guarantee: any change of a byte, and any line taken out, put in or moved by someone without the key, is
    found, except that whole lines were cut off the end. A cut is found where ``expected_head`` is the head
    of a line that is gone; so is a log that the owner of the key wrote anew.

    Args:
        path: The log; it is not written to, and may be one that a site is writing.
        public_key: The audit key's, 32 bytes.
        expected_head: A head of this log that was seen before, in a message or a syslog, at any time.

    Returns:
        The finding. Its problem is FT830 for a file that cannot be read, FT831 for the first line that is
        not what was written, FT832 for a head that is not there, FT833 for a last line without its end.
    """
    chain = Chain(signer=public_key)
    expected_line = 0 if expected_head == chain.head else None
    torn = False
    problem: Problem | None = None
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            for line in file:
                torn = not line.endswith(b"\n")
                if torn:
                    break
                chain = chain.after(line[:-1])
                expected_line = chain.sequence if chain.head == expected_head else expected_line
    except OSError as error:
        problem = unusable(path, error)
    except BrokenLineError as error:
        problem = damaged(path, chain.sequence + 1, error)
    if problem is None and expected_head is not None and expected_line is None:
        problem = cut(path, expected_head, chain.sequence)
    if problem is None and torn:
        problem = incomplete(path, chain.sequence + 1)
    return Verification(
        path=path,
        lines=chain.sequence,
        head=chain.head,
        time=chain.time,
        expected_line=expected_line,
        bad_line=None if problem is None else chain.sequence + 1,
        problem=problem,
    )


def heads_to_syslog(handler: SysLogHandler, *, name: str) -> Callable[[int, bytes], None]:
    """Return an ``on_head`` that sends each head to a syslog.

    Args:
        handler: Knows the syslog's address; its owner closes it.
        name: Tells this log from others in the same syslog.
    """

    def send(sequence: int, head: bytes) -> None:
        text = f"fedtune audit log {name}: line {sequence}, head {head.hex()}"
        handler.handle(logging.LogRecord(__name__, logging.INFO, __file__, 0, text, None, None))

    return send


def _completed(chain: Chain, tail: bytes) -> Chain | None:
    """Return where the log stands after a line that lacks its newline alone."""
    try:
        return chain.after(tail)
    except BrokenLineError:
        return None


def _read_from(file: int, start: int) -> bytes:
    os.lseek(file, start, os.SEEK_SET)
    return b"".join(iter(lambda: os.read(file, _READ_BYTES), b""))
