"""What a file or folder of key material holds, and everything that is wrong with it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fedtune.errors import FedtuneError, Problem
from fedtune.keys.authority import AUTHORITY_CERTIFICATE, NODES, read_certificate
from fedtune.keys.certificates import certificate_hash
from fedtune.keys.formats import Content, content_of
from fedtune.keys.joining import read_connection
from fedtune.keys.node import CONNECTION
from fedtune.keys.problems import problem
from fedtune.keys.storage import mode_flaw, read_bounded

__all__ = ["Inspected", "inspect"]

_SUFFIXES: Final = frozenset({".json", ".key", ".pem", ".pub"})


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """One file.

    Attributes:
        path: The file.
        content: What it is; None if it cannot be told.
        mode: Its mode in four octal digits; None if it cannot be read.
        days_left: Whole days until it ends; None if it does not end.
        problems: Everything that is wrong with it.
    """

    path: Path
    content: Content | None
    mode: str | None
    days_left: int | None
    problems: tuple[Problem, ...]

    def as_json(self) -> dict[str, Any]:
        """The keys are an interface."""
        content = self.content or Content(kind="unknown")
        return {
            "path": str(self.path),
            "kind": content.kind,
            "name": content.name,
            "fingerprint": content.fingerprint,
            "mode": self.mode,
            "ends": None if content.ends is None else content.ends.isoformat(),
            "days_left": self.days_left,
            **content.details,
            "warnings": list(content.warnings),
            "problems": [dataclasses.asdict(each) for each in self.problems],
        }


def inspect(path: Path, now: datetime) -> list[Inspected]:
    """A file, or the files of a folder that have a name such as fedtune gives; nothing is written.

    Args:
        path: The coordinator's or a site's folder, or any file in it.
        now: This moment, to tell what has ended.
    """
    try:
        if not path.is_dir():
            return [_inspected(path, now)]
        files = list(_files(path))
    except OSError as error:
        return [_nothing(path, f"the folder cannot be read: {error.strerror}")]
    found = [_with_neighbour(_inspected(each, now)) for each in files]
    return found or [_nothing(path, "there is no key material in this folder")]


def _nothing(path: Path, what: str) -> Inspected:
    lack = problem("FT636", what, where=str(path))
    return Inspected(path=path, content=None, mode=None, days_left=None, problems=(lack,))


def _files(folder: Path) -> Iterator[Path]:
    for inside in (folder, folder / NODES):
        if inside.is_dir():
            for each in sorted(inside.iterdir()):
                if each.suffix in _SUFFIXES and not each.name.startswith(".") and not each.is_dir():
                    yield each


def _with_neighbour(file: Inspected) -> Inspected:
    """A connection names the certificate beside it: a joining that was cut short leaves another one."""
    if file.problems or file.path.name != CONNECTION:
        return file
    try:
        accepted = read_connection(file.path).authority
        beside = read_certificate(file.path.with_name(AUTHORITY_CERTIFICATE), "the authority's certificate")
    except FedtuneError as error:
        return dataclasses.replace(file, problems=error.problems)
    if certificate_hash(beside) == accepted:
        return file
    what = f"{AUTHORITY_CERTIFICATE} beside it is not the authority that this site accepted"
    lack = problem("FT636", what, where=str(file.path), fix="join again: fedtune keys join")
    return dataclasses.replace(file, problems=(lack,))


def _inspected(path: Path, now: datetime) -> Inspected:
    content: Content | None = None
    mode: int | None = None
    problems: list[Problem] = []
    try:
        data = read_bounded(path, "FT636", "the file")
        mode = os.stat(path).st_mode & 0o7777
        content = content_of(path, data, now)
    except FedtuneError as error:
        problems += [dataclasses.replace(each, where=str(path)) for each in error.problems]
    except OSError as error:
        problems.append(problem("FT636", f"the file cannot be read: {error.strerror}", where=str(path)))
    if content is not None and mode is not None:
        flaw = mode_flaw(mode) if content.private else None
        if flaw:
            said = f"a private key: {flaw}"
            problems.append(problem("FT630", said, where=str(path), fix=f"chmod 600 {path}"))
        problems += [problem("FT631", flaw, where=str(path)) for flaw in content.flaws]
    ends = content.ends if content is not None else None
    return Inspected(
        path=path,
        content=content,
        mode=None if mode is None else f"{mode:04o}",
        days_left=None if ends is None else (ends - now).days,
        problems=tuple(problems),
    )
