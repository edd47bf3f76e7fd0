"""Flower's SuperLink with more patience for its own database.

Its requests wait 5 s for SQLite's lock, and answer 500 when that is over: on a busy machine they are, and
what asked may not ask again. Here they wait for a minute. ``python -m
fedtune.coordinator.superlink_process`` takes the arguments of ``flower-superlink``.
"""

from __future__ import annotations

from flwr.supercore import sql_mixin
from flwr.superlink.cli import flower_superlink

__all__ = ["BUSY_MILLISECONDS", "patient"]

BUSY_MILLISECONDS = 60_000


def patient(pragmas: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Return settings of SQLite with a longer wait for its lock.

    Raises:
        ValueError: Flower does not set that wait any more.
    """
    changed = dict(pragmas)
    if "busy_timeout" not in changed:
        raise ValueError("flwr sets no busy_timeout")
    return tuple((changed | {"busy_timeout": str(BUSY_MILLISECONDS)}).items())


if __name__ == "__main__":
    vars(sql_mixin)["SQLITE_PRAGMAS"] = patient(vars(sql_mixin)["SQLITE_PRAGMAS"])
    flower_superlink()
