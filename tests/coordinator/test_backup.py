"""What was backed up comes back as it was, all of it or nothing, and to nobody without the passphrase."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import tracemalloc
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.canary import assert_no_trace

from fedtune import __version__
from fedtune.coordinator import backup as backup_module
from fedtune.coordinator.backup import BackedUp, back_up
from fedtune.coordinator.backup_runs import OpenFile
from fedtune.coordinator.restore import restore
from fedtune.errors import FedtuneError

pytestmark = pytest.mark.usefixtures("cheap_scrypt")

WORDS = b"six random words"
NOW = datetime(2026, 11, 20, 18, 0, tzinfo=UTC)
FUNCTION_SCOPED = [HealthCheck.function_scoped_fixture]

TAKEN = {
    "ca.key": 0o600,
    "ca.pem": 0o644,
    "coordinator.key": 0o600,
    "server.yaml": 0o644,
    "roster.json": 0o644,
    "roster.2.json": 0o644,
    "nodes/ear.pub": 0o644,
    "nodes/eye.pub": 0o644,
    "tls/hub.key": 0o600,
    "tls/hub.pem": 0o644,
    "bundles/ear.bundle.json": 0o644,
    "bundles/eye.bundle.json": 0o644,
    "state/superlink.db": 0o600,
    "state/notified.json": 0o600,
    "runs/sweep.json": 0o644,
    "runs/pilot/config.yaml": 0o644,
    "runs/pilot/rounds.jsonl": 0o644,
    "runs/pilot/checkpoints/0001/adapter.safetensors": 0o644,
    "runs/pilot/checkpoints/0001/state.json": 0o644,
    "runs/pilot/secagg/0002-01.journal": 0o644,
    "runs/pilot/secagg/transcripts.jsonl": 0o644,
    "runs/pilot/secagg/coordinator.key": 0o600,
    "runs/pilot/adapter/README.md": 0o644,
}

STATE = {"notified.json", "server.jsonl", "superlink.db"}


def taken(folder: Path, out: Path) -> BackedUp:
    return back_up(folder, out, passphrase=WORDS, now=NOW)


def files(folder: Path) -> dict[str, Path]:
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def codes(caught: pytest.ExceptionInfo[FedtuneError]) -> list[str]:
    return [problem.code for problem in caught.value.problems]


def rows(database: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return connection.execute("SELECT * FROM node").fetchall()


def test_what_comes_back_is_what_was_there(folder: Path, tmp_path: Path) -> None:
    (folder / "server.yaml").chmod(0o666)
    for number, path in enumerate(files(folder).values()):
        os.utime(path, (0, 1_700_000_000 + number))
    made = taken(folder, tmp_path / "monday.backup")
    assert made.path.stat().st_mode & 0o7777 == 0o600
    assert made.left_out == ("notes.txt",)
    assert {path.name for path in (folder / "state").iterdir()} == STATE
    done = restore(made.path, tmp_path / "new" / "coordinator", passphrase=WORDS)
    assert (done.made, done.version) == (NOW, __version__)
    assert done.files == made.files == len(TAKEN)
    back = files(tmp_path / "new" / "coordinator")
    assert {name: path.stat().st_mode & 0o7777 for name, path in back.items()} == TAKEN
    assert done.bytes == made.bytes == sum(path.stat().st_size for path in back.values())
    for name in TAKEN.keys() - {"state/superlink.db"}:
        assert back[name].read_bytes() == (folder / name).read_bytes(), name
        assert back[name].stat().st_mtime == (folder / name).stat().st_mtime
    assert rows(back["state/superlink.db"]) == rows(folder / "state" / "superlink.db")
    assert (tmp_path / "new" / "coordinator").stat().st_mode & 0o7777 == 0o700
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["coordinator"], (
        "nothing is left beside it"
    )


def test_an_empty_folder_is_taken(folder: Path, tmp_path: Path) -> None:
    made = taken(folder, tmp_path / "backup")
    (tmp_path / "empty").mkdir()
    assert restore(made.path, tmp_path / "empty", passphrase=WORDS).files == len(TAKEN)


def test_a_folder_of_a_server_that_never_ran_is_taken(folder: Path, tmp_path: Path) -> None:
    for part in ("state", "runs", "bundles", "tls"):
        shutil.rmtree(folder / part)
    made = taken(folder, tmp_path / "backup")
    assert restore(made.path, tmp_path / "back", passphrase=WORDS).files == 8


def test_nothing_of_it_can_be_read_without_the_passphrase(folder: Path, tmp_path: Path) -> None:
    (folder / "server.yaml").write_text("address: kept-from-everybody.example.org\n")
    out = tmp_path / "out"
    out.mkdir()
    taken(folder, out / "backup")
    assert_no_trace(out, "kept-from-everybody.example.org")
    assert_no_trace(out, "adapter.safetensors")


@pytest.mark.parametrize("words", [b"five random words", b"", WORDS + b" "])
def test_another_passphrase_opens_nothing(folder: Path, tmp_path: Path, words: bytes) -> None:
    made = taken(folder, tmp_path / "backup")
    with pytest.raises(FedtuneError) as caught:
        restore(made.path, tmp_path / "back", passphrase=words)
    assert codes(caught) == ["FT671"]
    assert {path.name for path in tmp_path.iterdir()}.isdisjoint({"back", ".back"})


def assert_refused(content: bytes, place: Path) -> None:
    (place / "damaged").write_bytes(content)
    before = {path.name for path in place.iterdir()}
    with pytest.raises(FedtuneError) as caught:
        restore(place / "damaged", place / "back", passphrase=WORDS)
    assert codes(caught)[0] in ("FT671", "FT672")
    assert {path.name for path in place.iterdir()} == before, "nothing was written, and nothing is left"


@settings(suppress_health_check=FUNCTION_SCOPED, max_examples=50)
@given(data=st.data())
def test_a_backup_that_was_changed_or_cut_restores_nothing(
    folder: Path, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "backup"
    whole = path.read_bytes() if path.exists() else taken(folder, path).path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "add", "drop", "twice"])):
        case "flip":
            assert_refused(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :], tmp_path)
        case "cut":
            assert_refused(whole[:at], tmp_path)
        case "add":
            assert_refused(whole + data.draw(st.binary(min_size=1, max_size=70_000)), tmp_path)
        case "drop":
            assert_refused(whole[:at] + whole[at + data.draw(st.sampled_from([1, 65_552])) :], tmp_path)
        case _:
            assert_refused(whole[: 65 + 65_552] + whole[65:], tmp_path)


def test_a_folder_that_holds_something_is_left_as_it_is(folder: Path, tmp_path: Path) -> None:
    made = taken(folder, tmp_path / "backup")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note").touch()
    for name in ("file", "link", "used"):
        with pytest.raises(FedtuneError) as caught:
            restore(made.path, tmp_path / name, passphrase=WORDS)
        assert codes(caught) == ["FT673"]
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["note"]


def test_everything_that_stands_in_the_way_is_said_at_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "backup").touch()
    (folder / "ca.pem").unlink()
    (folder / "ca.key").chmod(0o640)
    (folder / "tls" / "hub.key").chmod(0o604)
    with pytest.raises(FedtuneError) as caught:
        taken(folder, tmp_path / "backup")
    assert codes(caught) == ["FT670", "FT630", "FT630", "FT673"]
    assert (tmp_path / "backup").read_bytes() == b""


def test_a_short_passphrase_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FedtuneError) as caught:
        back_up(folder, tmp_path / "backup", passphrase=b"elevenbytes", now=NOW)
    assert codes(caught) == ["FT630"]


@pytest.mark.parametrize(
    "where", ["nodes/x.pub", "runs/pilot/secagg/x", "runs/pilot/x", "runs/other", "server.yaml"]
)
@pytest.mark.parametrize("kind", ["link", "folder link", "pipe"])
def test_what_is_no_file_is_named_and_not_followed(
    folder: Path, tmp_path: Path, where: str, kind: str
) -> None:
    path = folder / where
    path.unlink(missing_ok=True)
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "folder link":
            path.symlink_to("/etc")
        case _:
            os.mkfifo(path)
    with pytest.raises(FedtuneError) as caught:
        taken(folder, tmp_path / "backup")
    assert codes(caught) == ["FT670"]
    assert str(path) in str(caught.value)
    assert not any("backup" in each.name for each in tmp_path.iterdir()), "nothing half-made is left"


def test_a_folder_that_is_none_is_a_problem(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(FedtuneError) as caught:
            taken(folder, tmp_path / "backup")
        assert set(codes(caught)) == {"FT670"}


def test_a_damaged_database_is_not_backed_up(folder: Path, tmp_path: Path) -> None:
    path = folder / "state" / "superlink.db"
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(FedtuneError, match="the server's database cannot be copied"):
        taken(folder, tmp_path / "backup")
    path.write_bytes(b"not a database, though long enough to be one" * 99)
    with pytest.raises(FedtuneError, match="file is not a database"):
        taken(folder, tmp_path / "backup")
    assert {each.name for each in path.parent.iterdir()} >= STATE
    assert not list(path.parent.glob(".*")), "no copy is left"


def test_the_database_is_of_one_moment_while_its_server_writes(folder: Path, tmp_path: Path) -> None:
    database = folder / "state" / "superlink.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER)")
        connection.execute("INSERT INTO account VALUES (1, 0), (2, 0)")
        connection.commit()
    stop, failures, written = threading.Event(), [], []

    def serve() -> None:
        with closing(sqlite3.connect(database, timeout=5)) as connection:
            try:
                for number in range(10**9):
                    connection.execute("UPDATE account SET amount = amount + 1 WHERE id = 1")
                    connection.execute("INSERT INTO node VALUES ('noise', randomblob(5000))")
                    connection.execute("UPDATE account SET amount = amount - 1 WHERE id = 2")
                    connection.commit()
                    written.append(number)
                    if stop.is_set():
                        return
            except sqlite3.Error as error:
                failures.append(error)

    server = threading.Thread(target=serve)
    server.start()
    try:
        for number in range(5):
            while len(written) < 10 * (number + 1):
                pass
            made = taken(folder, tmp_path / f"backup{number}")
            restore(made.path, tmp_path / f"back{number}", passphrase=WORDS)
    finally:
        stop.set()
        server.join()
    assert not failures, "the server was never kept out"
    for number in range(5):
        with closing(sqlite3.connect(tmp_path / f"back{number}" / "state" / "superlink.db")) as copy:
            [(plus,), (minus,)] = copy.execute("SELECT amount FROM account ORDER BY id").fetchall()
            assert plus == -minus >= 10 * (number + 1)


def test_a_file_that_changes_while_it_is_read_is_named(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backup_module.opened

    def opened_and_then_changed(here: Path, name: str) -> OpenFile:
        held = real(here, name)
        if name == "server.yaml":
            (folder / name).write_text("another")
        return held

    monkeypatch.setattr(backup_module, "opened", opened_and_then_changed)
    with pytest.raises(FedtuneError, match="the file was changed while it was read"):
        taken(folder, tmp_path / "backup")


def test_memory_does_not_grow_with_what_is_backed_up(folder: Path, tmp_path: Path) -> None:
    with (folder / "runs" / "pilot" / "checkpoints" / "0001" / "adapter.safetensors").open("wb") as file:
        file.truncate(96 * 2**20)
    tracemalloc.start()
    made = taken(folder, tmp_path / "backup")
    restore(made.path, tmp_path / "back", passphrase=WORDS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.bytes > 96 * 2**20
    assert peak < 4 * 2**20


def test_a_disk_that_fills_up_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    made = taken(folder, tmp_path / "backup")
    out = tmp_path / "out"
    out.mkdir()
    script = """
import resource, signal, sys
from datetime import UTC, datetime
from pathlib import Path
from fedtune.coordinator import sealed_stream
from fedtune.coordinator.backup import back_up
from fedtune.coordinator.restore import restore
from fedtune.errors import RunError
sealed_stream._SCRYPT_N = 2**4
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
folder, made, out = map(Path, sys.argv[1:])
for work in (
    lambda: back_up(folder, out / "backup", passphrase=b"six random words", now=datetime.now(UTC)),
    lambda: restore(made, out / "back", passphrase=b"six random words"),
):
    try:
        work()
    except RunError as error:
        print(error.problems[0].code)
"""
    command = [sys.executable, "-c", script, folder, made.path, out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["FT705", "FT705"]
    assert list(out.iterdir()) == []


def test_a_restore_that_is_interrupted_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = taken(folder, tmp_path / "backup")
    before = {path.name for path in tmp_path.iterdir()}
    real, calls = os.fchmod, []

    def interrupted(*arguments: int) -> None:
        calls.append(arguments)
        if len(calls) == 9:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(os, "fchmod", interrupted)
    with pytest.raises(KeyboardInterrupt):
        restore(made.path, tmp_path / "back", passphrase=WORDS)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_restoring_a_folder_that_cannot_be_made_is_a_problem(folder: Path, tmp_path: Path) -> None:
    made = taken(folder, tmp_path / "backup")
    (tmp_path / "file").touch()
    with pytest.raises(FedtuneError) as caught:
        restore(made.path, tmp_path / "file" / "back", passphrase=WORDS)
    assert codes(caught) == ["FT707"]
    with pytest.raises(FedtuneError) as caught:
        restore(tmp_path / "none", tmp_path / "back", passphrase=WORDS)
    assert codes(caught) == ["FT672"]
