"""A backup of a coordinator's folder in one file under a passphrase, taken while the server runs.

The file is a tar archive (POSIX.1-2001) in a stream that sealed_stream.py describes. Its first member,
``backup.json``, says what made it and when. backup_content.py says what is in it, backup_runs.py how a run is
read that is being written; the database is copied by SQLite's own online backup, into the state's folder,
and the copy is removed again.
"""

from __future__ import annotations

import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Final, cast

import fedtune
from fedtune.coordinator.backup_content import (
    DATABASE,
    is_private,
    left_out,
    plain_files,
    stored_mode,
)
from fedtune.coordinator.backup_runs import OpenFile, opened, run_files
from fedtune.coordinator.problems import problem, refusal
from fedtune.coordinator.sealed_stream import SealingWriter, new_key
from fedtune.errors import FederationError, Problem
from fedtune.keys import problems as key_problems
from fedtune.keys import strict
from fedtune.keys.authority import AUTHORITY_CERTIFICATE, AUTHORITY_KEY, COORDINATOR_KEY
from fedtune.keys.private import long_enough
from fedtune.keys.storage import mode_flaw
from fedtune.observability.disk import TEMPORARY_SUFFIX, disk_errors, sync_directory

__all__ = ["BACKUP_FORMAT", "MANIFEST", "BackedUp", "back_up"]

MANIFEST: Final = "backup.json"
BACKUP_FORMAT: Final = "fedtune-backup/1"

_GROWING: Final = (".jsonl", ".journal")
_DATABASE_WAIT_SECONDS: Final = 30


@dataclass(frozen=True, kw_only=True)
class BackedUp:
    """A backup that was made.

    Attributes:
        path: The file.
        files: How many it holds.
        bytes: Their size in all.
        left_out: Names in the coordinator's folder that no backup holds.
    """

    path: Path
    files: int
    bytes: int
    left_out: tuple[str, ...]


def back_up(folder: Path, out: Path, *, passphrase: bytes, now: datetime) -> BackedUp:
    """Write a backup of a coordinator's folder; the server may run.

    Args:
        folder: The coordinator's.
        out: A new file, readable by its owner alone.
        passphrase: At least 12 bytes; without it nobody can open the backup.
        now: Written into the backup.

    Raises:
        FederationError: FT630, the passphrase is too short or others may use a private key; FT670 for each
            thing that cannot be backed up; FT673, there is a file already.
        RunError: FT705 or FT707, the file cannot be written. No file is left then, or after any other error.
    """
    long_enough(passphrase, where="the backup's passphrase")
    with _reading(folder):
        names = list(plain_files(folder))
        _require_sound(folder, names, out)
    temporary = out.with_name(f".{out.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with disk_errors(out, kept="nothing was changed", again="repeat the command"):
        try:
            with open(
                os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
            ) as file:
                made = _write(folder, names, file, passphrase=passphrase, now=now, out=out)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, out)
        except BaseException:
            with suppress(FileNotFoundError):
                temporary.unlink()
            raise
        sync_directory(out.parent)
    return made


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = str(error.filename or folder)
        raise refusal("FT670", f"this cannot be read: {error.strerror}", where=where) from error


def _require_sound(folder: Path, names: list[str], out: Path) -> None:
    """Refuse with everything that stands in the way of a backup."""
    found: list[Problem] = []
    for name in (AUTHORITY_CERTIFICATE, AUTHORITY_KEY, COORDINATOR_KEY):
        if name not in names:
            found.append(problem("FT670", "a coordinator's folder has this file", where=str(folder / name)))
    for name in names:
        path = folder / name
        flaw = mode_flaw(path.stat().st_mode) if is_private(name) else None
        if flaw:
            what = f"a private key: {flaw}"
            found.append(key_problems.problem("FT630", what, where=str(path), fix=f"chmod 600 {path}"))
    if os.path.lexists(out):
        found.append(problem("FT673", "a backup is not written over a file that is there", where=str(out)))
    if found:
        raise FederationError(found)


def _write(
    folder: Path, names: list[str], file: BinaryIO, *, passphrase: bytes, now: datetime, out: Path
) -> BackedUp:
    sealing = SealingWriter(file, new_key(passphrase))
    files = total = 0
    # tarfile asks no more of a stream than to write.
    with tarfile.open(fileobj=cast(BinaryIO, sealing), mode="w|", format=tarfile.PAX_FORMAT) as archive:
        said = strict.written(
            {
                "format": BACKUP_FORMAT,
                "made": now.astimezone(UTC).isoformat(timespec="seconds"),
                "version": fedtune.__version__,
            }
        )
        archive.addfile(_member(MANIFEST, len(said), 0o600, now.timestamp()), BytesIO(said))
        for each in _all_files(folder, names):
            archive.addfile(
                _member(each.name, each.size, stored_mode(each.name, each.mode), each.changed / 1e9),
                cast(BinaryIO, _Whole(each, folder)),
            )
            files, total = files + 1, total + each.size
    sealing.finish()
    with _reading(folder):
        return BackedUp(path=out, files=files, bytes=total, left_out=left_out(folder))


def _member(name: str, size: int, mode: int, changed: float) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, mode, int(changed)
    return member


def _all_files(folder: Path, names: list[str]) -> Iterator[OpenFile]:
    for name in names:
        with _reading(folder):
            held = opened(folder, name)
        with held.file:
            yield held
    if (folder / DATABASE).exists():
        with _database_copy(folder) as held:
            yield held
    files = run_files(folder)
    while True:
        with _reading(folder):
            following = next(files, None)
        if following is None:
            return
        yield following


class _Whole:
    """Reads as much of a file as it had when it was opened, and says so if it was changed meanwhile."""

    def __init__(self, held: OpenFile, folder: Path) -> None:
        self._held = held
        self._left = held.size
        self._where = str(folder / held.name)

    def read(self, size: int) -> bytes:
        held, wanted = self._held, min(size, self._left)
        with _reading(Path(self._where)):
            data = held.file.read(wanted)
            written = os.fstat(held.file.fileno()).st_mtime_ns != held.changed
        self._left -= len(data)
        if len(data) < wanted or (written and not held.name.endswith(_GROWING)):
            what = "the file was changed while it was read"
            raise refusal("FT670", what, where=self._where, fix="repeat the command")
        return data


@contextmanager
def _database_copy(folder: Path) -> Iterator[OpenFile]:
    """Copy the database as it is at one moment, whatever its server writes meanwhile, and check the copy."""
    database = folder / DATABASE
    with tempfile.TemporaryDirectory(
        prefix=".backup-", suffix=TEMPORARY_SUFFIX, dir=database.parent
    ) as scratch:
        copy = Path(scratch) / database.name
        try:
            with (
                closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=rw", uri=True)) as source,
                closing(sqlite3.connect(copy)) as target,
            ):
                # Not read-only: such a connection would leave its -wal and -shm behind.
                source.execute(f"PRAGMA busy_timeout = {_DATABASE_WAIT_SECONDS * 1000}")
                source.backup(target)  # in one step: one moment, which keeps no writer out in WAL mode
                [(flaw,)] = target.execute("PRAGMA quick_check(1)").fetchall()
        except (sqlite3.Error, ValueError) as error:
            flaw = str(error)
        if flaw != "ok":
            what = f"the server's database cannot be copied: {flaw:.200}"
            raise refusal("FT670", what, where=str(database))
        with (held := opened(Path(scratch), copy.name)).file:
            yield replace(held, name=DATABASE)
