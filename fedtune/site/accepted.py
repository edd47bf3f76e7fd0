"""What the site has accepted, for the limits of a day: written down before the work begins."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from fedtune.errors import MachineError, Problem
from fedtune.observability.disk import write_atomic
from fedtune.site.policy_asked import PrivacyCost, Usage
from fedtune.site.policy_schema import SitePolicy
from fedtune.site.records import DamagedRecordError, append_record, read_records

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
        line = {"time": now.isoformat(), "kind": kind, "run": run, "round": round_number}
        append_record(self._path, line, kept="what was accepted before", again="start the client again")

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
        """Forget requests of more than three days ago, once the file is larger than a MiB.

        Nobody else may write the file meanwhile.

        Raises:
            MachineError: FT684, the file is damaged.
            RunError: FT705 or FT707, it cannot be written.
        """
        if not self._path.exists() or self._path.stat().st_size < _COMPACT_BYTES:
            return
        kept = [json.dumps(record) for time, _, record in self._read() if time > now - _KEPT]
        write_atomic(self._path, "".join(f"{line}\n" for line in kept).encode(), kept="all of it")

    def _read(self) -> list[tuple[datetime, Kind, dict[str, Any]]]:
        try:
            return read_records(self._path, _parse)
        except DamagedRecordError as error:
            raise MachineError(
                Problem(
                    code="FT684",
                    what="the record of accepted requests is damaged",
                    where=str(self._path) if error.line is None else f"{self._path}, line {error.line}",
                    fix="move the file away: the limits of this day begin anew",
                )
            ) from None


def _parse(raw: dict[str, Any]) -> tuple[datetime, Kind, dict[str, Any]]:
    kinds: dict[str, Kind] = {"train": "train", "evaluate": "evaluate"}
    time = datetime.fromisoformat(raw["time"])
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time, kinds[raw["kind"]], raw
