"""What the site has accepted, for the limits of a day: written down before the work begins."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Literal

from fedtune.errors import MachineError, Problem
from fedtune.observability.disk import disk_errors, write_all, write_atomic
from fedtune.site.policy_asked import PrivacyCost, Usage
from fedtune.site.policy_schema import SitePolicy

__all__ = ["AcceptedLog"]

Kind = Literal["train", "evaluate"]
_KEPT = timedelta(days=3)
_COMPACT_BYTES = 2**20


class AcceptedLog:
    """Counts requests.

    Guarantee: a request is on the disk before `add` returns, so that a client which is killed and starts
    again never forgets one.

    Args:
        path: JSON lines.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, kind: Kind, now: datetime, *, run: str, round_number: int) -> None:
        """Write a request down, durably.

        Raises:
            RunError: FT705 or FT707, it cannot be written: then nothing may be done.
        """
        line = {"v": 1, "time": now.isoformat(), "kind": kind, "run": run, "round": round_number}
        with disk_errors(self._path, kept="what was accepted before"):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(file).st_size
                torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"
                write_all(file, (b"\n" if torn else b"") + json.dumps(line).encode() + b"\n")
                os.fsync(file)
            finally:
                os.close(file)

    def usage(self, policy: SitePolicy, now: datetime) -> Usage:
        """Count what was accepted on the site's present day.

        Raises:
            MachineError: FT684, the file is damaged.
        """
        times: dict[Kind, list[datetime]] = {"train": [], "evaluate": []}
        for time, kind, _ in self._read():
            times[kind].append(time)
        return Usage.counted(
            policy,
            now,
            trained=times["train"],
            evaluated=times["evaluate"],
            privacy=PrivacyCost(epsilon=0.0, delta=0.0),
        )

    def compact(self, now: datetime) -> None:
        """Forget requests of more than three days ago, once the file is larger than a MiB."""
        if not self._path.exists() or self._path.stat().st_size < _COMPACT_BYTES:
            return
        kept = [line for time, _, line in self._read() if time > now - _KEPT]
        write_atomic(self._path, b"".join(line + b"\n" for line in kept), kept="all of it")

    def _read(self) -> list[tuple[datetime, Kind, bytes]]:
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(lines, start=1):
            if not line:
                continue
            try:
                found.append((*_parse(line), line))
            except (ValueError, KeyError, TypeError):
                if not line.endswith(b"}"):
                    continue  # cut off by a crash before anything was done on its strength
                raise MachineError(
                    Problem(
                        code="FT684",
                        what="the record of accepted requests is damaged",
                        where=f"{self._path}, line {number}",
                        fix="move the file away: the limits of this day begin anew",
                    )
                ) from None
        return found


def _parse(line: bytes) -> tuple[datetime, Kind]:
    raw = json.loads(line)
    kinds: dict[str, Kind] = {"train": "train", "evaluate": "evaluate"}
    time = datetime.fromisoformat(raw["time"])
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time, kinds[raw["kind"]]
