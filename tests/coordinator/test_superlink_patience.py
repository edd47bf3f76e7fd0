"""The SuperLink that the server starts waits for its database; held to what flwr calls the setting."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from flwr.supercore import sql_mixin

from fedtune.coordinator.superlink_process import BUSY_MILLISECONDS, patient


def test_every_connection_waits_a_minute_for_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(sql_mixin.SQLITE_PRAGMAS)
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", patient(sql_mixin.SQLITE_PRAGMAS))
    connection = sqlite3.connect(tmp_path / "superlink.db")
    try:
        sql_mixin._set_sqlite_pragmas(connection, None)
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (BUSY_MILLISECONDS,)
    finally:
        connection.close()
    after = dict(sql_mixin.SQLITE_PRAGMAS)
    assert before | {"busy_timeout": str(BUSY_MILLISECONDS)} == after


def test_a_flwr_that_sets_no_wait_is_noticed() -> None:
    with pytest.raises(ValueError, match="busy_timeout"):
        patient((("journal_mode", "WAL"),))
