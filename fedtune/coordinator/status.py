"""What the server knows at this moment, in a file that `fedtune server status` reads."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fedtune.errors import Problem, RunError

__all__ = ["ENDED", "RunState", "RunStatus", "ServerStatus", "SiteStatus", "read_status", "write_status"]

RunState = Literal[
    "waiting", "running", "stopping", "restarting", "completed", "failed", "stopped", "given_up"
]

ENDED: Final[frozenset[RunState]] = frozenset({"completed", "failed", "stopped", "given_up"})
"""States in which nothing is left to do."""


@dataclass(frozen=True, kw_only=True)
class SiteStatus:
    """One enrolled site.

    Attributes:
        site: Its name.
        node_id: Flower's number of its node.
        online: Whether its heartbeats arrive.
        last_activated: When it last connected, ISO 8601; empty for never.
    """

    site: str
    node_id: int
    online: bool
    last_activated: str


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """A run that is wanted, or the last one that was.

    Attributes:
        name: Its name.
        state: Where it is.
        flower_run: Flower's number of its present session; None before the first.
        restarts: How often it was started again after its process was killed.
        reason: Why it ended, or is started again.
    """

    name: str
    state: RunState
    flower_run: int | None
    restarts: int
    reason: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class ServerStatus:
    """The server at one moment.

    Attributes:
        time: When, in unix seconds.
        pid: The server's process.
        version: Of fedtune.
        federation: Its name.
        listen: Where the gate listens.
        sites: Who is enrolled.
        run: The run that is wanted, or the last one that was; None before the first.
    """

    time: float
    pid: int
    version: str
    federation: str
    listen: tuple[str, ...]
    sites: tuple[SiteStatus, ...]
    run: RunStatus | None

    @property
    def is_running(self) -> bool:
        """Whether that server is there still."""
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return time.time() - self.time < 120.0


def write_status(path: Path, status: ServerStatus) -> None:
    """Replace the file; it is no record, so nothing waits for the disk."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(dataclasses.asdict(status)), encoding="utf-8")
    os.replace(temporary, path)


def read_status(path: Path) -> ServerStatus | None:
    """Return what the server wrote last; None if it never has.

    Raises:
        RunError: FT666, the file is damaged.
    """
    try:
        raw: dict[str, Any] = json.loads(path.read_bytes())
        run = raw.pop("run")
        sites = raw.pop("sites")
        listen = raw.pop("listen")
        return ServerStatus(
            **raw,
            listen=tuple(listen),
            sites=tuple(SiteStatus(**site) for site in sites),
            run=None if run is None else RunStatus(**run),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise RunError(
            Problem(
                code="FT666",
                what="the record of the server's status is damaged",
                where=str(path),
                fix="delete it; a running server writes it anew within seconds",
            )
        ) from None
