"""A coordinator's folder back from a backup: all of it, or nothing.

The backup is unpacked beside the folder, read to its end and only then moved into place. What is in it was
sealed by who knows the passphrase; it is looked at nevertheless, so that nothing is written outside the
folder, no link is made, and no file gets a mode that it may not have.
"""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final, cast

from fedtune.coordinator.backup import BACKUP_FORMAT, MANIFEST
from fedtune.coordinator.backup_content import belongs, is_private
from fedtune.coordinator.problems import refusal
from fedtune.coordinator.sealed_stream import OpeningReader, read_key
from fedtune.errors import FederationError
from fedtune.keys import strict
from fedtune.observability.disk import TEMPORARY_SUFFIX, disk_errors, sync_directory
from fedtune.secagg.fields import string

__all__ = ["Restored", "restore", "unpack"]

_MOST_MANIFEST: Final = 4_096
_COPY_BYTES: Final = 2**18

Read = Callable[[int], bytes]
"""Up to so many bytes of an archive, and none at its end."""


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a backup held.

    Attributes:
        made: When the backup was made.
        version: Of the fedtune that made it.
        files: How many were restored.
        bytes: Their size in all.
    """

    made: datetime
    version: str
    files: int
    bytes: int


def restore(backup: Path, folder: Path, *, passphrase: bytes) -> Restored:
    """Put the content of a backup into a folder that is empty or not there.

    Args:
        backup: A file that `fedtune.coordinator.backup.back_up` wrote.
        folder: The coordinator's. The folder that it is in must be writable.
        passphrase: Of the backup.

    Raises:
        FederationError: FT671, the passphrase is another one; FT672, the backup is not as it was written;
            FT673, the folder holds something.
        RunError: FT705 or FT707, the folder cannot be written. After any error it is as it was.
    """
    folder = folder.absolute()
    _require_empty(folder)
    try:
        file = backup.open("rb")
    except OSError as error:
        what = f"the backup cannot be read: {error.strerror}"
        raise refusal("FT672", what, where=str(backup), fix="name the file of a backup") from None
    with file, _in_place(folder) as staged:
        key = read_key(file, passphrase, where=str(backup))
        return unpack(OpeningReader(file, key, where=str(backup)).read, staged, where=str(backup))


def _require_empty(folder: Path) -> None:
    if not os.path.lexists(folder):
        return
    with disk_errors(folder, kept="nothing was changed", again="repeat the command"):
        empty = folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())
    if not empty:
        what = "a backup is restored into a folder that is new or empty, and this is neither"
        raise refusal("FT673", what, where=str(folder))


@contextmanager
def _in_place(folder: Path) -> Iterator[Path]:
    """A new folder, which takes the place of ``folder`` if all goes well, and otherwise is gone."""
    staged = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY_SUFFIX}")
    with disk_errors(folder, kept="nothing was restored", again="repeat the command"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir(mode=0o700)
        try:
            yield staged
            for current, _, _ in os.walk(staged):
                sync_directory(Path(current))
            os.rename(staged, folder)  # onto a folder that is empty, or where nothing is
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        sync_directory(folder.parent)


def unpack(read: Read, into: Path, *, where: str) -> Restored:
    """Write the files of an archive into a new folder, and read it to its end.

    Guarantees:
        * Nothing is written but new regular files below ``into``, none with a mode that lets anybody but its
          owner write it, and no private one that lets others read it.
        * An archive with anything else in it is refused as a whole; what was written till then is the
          caller's to remove.

    Raises:
        FederationError: FT672, the archive is not one that a backup holds.
        OSError: A file cannot be written.
    """
    source = cast(BinaryIO, _Source(read))
    try:
        with tarfile.open(fileobj=source, mode="r|") as archive:
            members = iter(archive)
            manifest = _manifest(archive, next(members, None), where)
            files = total = 0
            for member in members:
                _require_member(member, where)
                _write(archive, member, into)
                files, total = files + 1, total + member.size
    except (FederationError, OSError):
        raise
    except Exception as error:
        # tarfile lets out whatever a damaged header makes it run into: TarError, ValueError and others.
        raise refusal(
            "FT672", f"the archive in it cannot be read: {type(error).__name__}", where=where
        ) from None
    while read(_COPY_BYTES):  # up to the end, where a cut shows
        pass
    made, version = manifest
    return Restored(made=made, version=version, files=files, bytes=total)


class _Source:
    """What tarfile asks of a stream."""

    def __init__(self, read: Read) -> None:
        self.read = read


def _manifest(archive: tarfile.TarFile, member: tarfile.TarInfo | None, where: str) -> tuple[datetime, str]:
    if member is None or member.name != MANIFEST or not member.isreg() or member.size > _MOST_MANIFEST:
        raise refusal("FT672", f"its first part is not {MANIFEST}", where=where)
    file = archive.extractfile(member)
    try:
        fields = strict.read(file.read() if file else b"", "format", "made", "version", form=BACKUP_FORMAT)
        return datetime.fromisoformat(fields["made"]).astimezone(UTC), string(fields["version"])
    except (ValueError, TypeError, OverflowError) as error:
        raise refusal("FT672", f"its {MANIFEST} cannot be read: {error!s:.200}", where=where) from None


def _require_member(member: tarfile.TarInfo, where: str) -> None:
    name, mode = member.name, member.mode
    flaw = None
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
        flaw = "is no file"
    elif not belongs(name):
        flaw = "is nothing that a backup holds"
    elif mode & 0o600 != 0o600 or mode & ~(0o600 if is_private(name) else 0o644):
        flaw = f"has the mode {mode:o}, which it may not have"
    if flaw:
        raise refusal("FT672", f"{name!a:.200} in it {flaw}", where=where)


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, into: Path) -> None:
    target = into.joinpath(*member.name.split("/"))
    try:
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(
            target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, member.mode
        )
    except (FileExistsError, NotADirectoryError):
        raise ValueError("a name occurs twice") from None
    with os.fdopen(descriptor, "wb") as file:
        content = archive.extractfile(member)
        if content is not None:
            shutil.copyfileobj(content, file, _COPY_BYTES)
        file.flush()
        os.fchmod(file.fileno(), member.mode)
        with suppress(OSError, OverflowError):
            os.utime(file.fileno(), (member.mtime, member.mtime))
        os.fsync(file.fileno())
