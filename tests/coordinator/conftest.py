"""A coordinator's folder with something in every corner, and passphrases that are cheap to try."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from support import enrolment

from fedtune.coordinator import sealed_stream


@pytest.fixture
def cheap_scrypt(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a passphrase costs is of no matter to these tests, but they open hundreds of files."""
    monkeypatch.setattr(sealed_stream, "_SCRYPT_N", 2**4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = enrolment.Coordinator(tmp_path)
    made.begin()
    made.server()
    for site in ("ear", "eye"):
        made.ask(site)
    bundles = made.answer("ear", "eye")
    here = made.folder
    bundles.rename(here / "bundles")
    (tmp_path / "tls").rename(here / "tls")
    (here / "server.yaml").write_text("address: 0.0.0.0:9092\n")
    (here / "roster.json").write_text("{}")
    (here / "roster.2.json").write_text("{}")
    (here / "notes.txt").write_text("not the server's")
    state = here / "state"
    state.mkdir(mode=0o700)
    (state / "notified.json").write_text("{}")
    (state / "notified.json").chmod(0o600)
    (state / "server.jsonl").write_text("a log\n")
    with closing(sqlite3.connect(state / "superlink.db")) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE node (name TEXT, key BLOB)")
        database.execute("INSERT INTO node VALUES ('ear', randomblob(100000))")
        database.commit()
    run = here / "runs" / "pilot"
    for name, content in {
        "config.yaml": b"name: pilot\n",
        "rounds.jsonl": b'{"event":"run_started"}\n',
        "checkpoints/0001/adapter.safetensors": bytes(range(256)) * 1_000,
        "checkpoints/0001/state.json": b"{}",
        "checkpoints/.0002.new.tmp/state.json": b"{",
        "secagg/0002-01.journal": b"\1" * 99,
        "secagg/transcripts.jsonl": b"{}\n",
        "secagg/coordinator.key": b"key",
        "adapter/README.md": b"# A model card\n",
        ".lock": b"123\n",
        ".report.html.7.tmp": b"<",
    }.items():
        path = run / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (run / "secagg" / "coordinator.key").chmod(0o600)
    (here / "runs" / "sweep.json").write_text("{}")
    return here
