"""Notices before a certificate ends: 30, 7 and 1 days before, once each, over restarts of the server."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from fedtune.coordinator.backup_content import NOTIFIED
from fedtune.coordinator.notify import Notice
from fedtune.errors import RunError
from fedtune.keys.inspection import inspect
from fedtune.observability.disk import write_atomic
from fedtune.secagg.fields import exactly, integer, listed, parse_json, string

__all__ = ["DAYS_BEFORE", "ExpiryWatch"]

logger = logging.getLogger(__name__)

DAYS_BEFORE: Final = (30, 7, 1)

_FORMAT: Final = "fedtune-notified/1"
_MOST_BYTES: Final = 2**20


@dataclass(frozen=True, kw_only=True, order=True)
class _Given:
    """A notice that was given: of which file, which end of it, and how many days before."""

    file: str
    ends: str
    days: int


class ExpiryWatch:
    """Looks at the certificates of a coordinator's folder and its ``tls`` when it is told to, such as daily.

    Which notices were given is kept in ``state/notified.json``. A file that is damaged counts as none: a
    notice twice is better than none.

    Args:
        folder: The coordinator's.
        federation: Its name, for the notices.
        give: Takes a notice, such as `fedtune.coordinator.notify.Notifier.give`.
    """

    def __init__(self, folder: Path, *, federation: str, give: Callable[[Notice], None]) -> None:
        self._folder = folder
        self._path = folder / NOTIFIED
        self._federation = federation
        self._give = give
        self._given = _read(self._path)

    def look(self, now: datetime) -> None:
        """Give the notices that are due. Of several for one certificate, the most urgent alone is given.

        Args:
            now: With its zone.
        """
        found = list(self._certificates(now))
        due = {
            _Given(file=name, ends=ends.isoformat(), days=days): (ends, left)
            for name, ends, left in found
            for days in DAYS_BEFORE
            if ends - now <= timedelta(days=days)
        }
        new = due.keys() - self._given
        for name in sorted({each.file for each in new}):
            ends, left = next(due[each] for each in sorted(new) if each.file == name)
            self._give(self._notice(name, ends, left, now))
        # What is no longer due is forgotten: the certificate was renewed, or is gone.
        if self._given != set(due):
            self._given = set(due)
            self._remember()

    def _certificates(self, now: datetime) -> Iterator[tuple[str, datetime, int]]:
        for folder in (self._folder, self._folder / "tls"):
            for file in inspect(folder, now) if folder.is_dir() else ():
                if file.content is not None and file.content.ends is not None and file.days_left is not None:
                    name = file.path.relative_to(self._folder).as_posix()
                    yield name, file.content.ends, file.days_left

    def _notice(self, name: str, ends: datetime, left: int, now: datetime) -> Notice:
        when = "has ended" if left < 0 else f"ends in {left} days" if left else "ends within a day"
        return Notice(
            kind="expiry",
            federation=self._federation,
            what=f"the certificate {name} {when}, on {ends:%Y-%m-%d}; fedtune keys show says how to renew it",
            when=now,
        )

    def _remember(self) -> None:
        given = [[each.file, each.ends, each.days] for each in sorted(self._given)]
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(self._path, json.dumps({"format": _FORMAT, "given": given}).encode() + b"\n")
        except (RunError, OSError) as error:
            logger.warning("which notices were given cannot be kept: %s", error)


def _read(path: Path) -> set[_Given]:
    try:
        with path.open("rb") as file:
            raw = parse_json(file.read(_MOST_BYTES))
        exactly(raw, "format", "given", form=_FORMAT)
        return {
            _Given(file=string(name), ends=string(ends), days=integer(days))
            for name, ends, days in map(listed, listed(raw["given"]))
        }
    except FileNotFoundError:
        return set()
    except (OSError, ValueError, TypeError):
        logger.warning("%s cannot be read: notices may be given twice", path)
        return set()
