"""The client keeps one Flower node running, ends in order, and never shares its folder.

A stand-in listens in the node's place; the real one is started in tests/e2e/test_client.py.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
import torch
from support.standing_site import audit_lines, standing_site, write_stand_in

from fedtune.errors import FedtuneError, MachineError
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.processes import free_ports
from fedtune.observability.json_log import log_to
from fedtune.site import daemon, node
from fedtune.site.approvals import write_standing
from fedtune.site.daemon import Client
from fedtune.site.executor import Executor
from fedtune.site.folder import SiteFolder
from fedtune.site.health_state import SiteState


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteFolder:
    monkeypatch.setattr(daemon, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(daemon, "FIRST_WAIT_SECONDS", 0.1)
    monkeypatch.setattr(Executor, "handle_one", lambda _: False)
    return standing_site(tmp_path)


def stand_in(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch, *, seconds: float = 600, mute: tuple[int, ...] = ()
) -> Callable[[], int]:
    """Put a stand-in in the node's place; returns how to ask how often it was started."""
    program = write_stand_in(folder.path.parent / "node.py", seconds=seconds, mute=mute)
    monkeypatch.setattr(node, "program", lambda: [str(program)])
    begun = program.with_suffix(".begun")
    return lambda: int(begun.read_text() or 0) if begun.exists() else 0


def serve_until(folder: SiteFolder, done: Callable[[], bool]) -> SiteState:
    """Serve until something is so; returns the state that the client kept."""
    states: list[SiteState] = []
    stop = threading.Event()

    class Kept(SiteState):
        def __init__(self, **keys: str) -> None:
            super().__init__(**keys)
            states.append(self)

    def watch() -> None:
        deadline = time.monotonic() + 120
        while not done() and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    patch = pytest.MonkeyPatch()
    try:
        patch.setattr(daemon, "SiteState", Kept)
        Client.of(folder).serve(stop)
    finally:
        stop.set()
        patch.undo()
        watcher.join()
    return states[0]


def test_a_client_that_is_stopped_says_so_in_the_audit_log_and_leaves_no_child(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = stand_in(folder, monkeypatch)
    folder.state.mkdir(mode=0o755)
    state = serve_until(folder, lambda: begun() == 1)
    assert folder.state.stat().st_mode & 0o777 == 0o700
    assert [line["event"] for line in audit_lines(folder)] == ["started", "stopped"]
    assert audit_lines(folder)[-1]["details"]["reason"] == "the client ended in order"
    assert not [child for child in psutil.Process().children() if "node.py" in " ".join(child.cmdline())]
    assert state.snapshot().stopped


def test_a_node_that_ends_is_started_again(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun = stand_in(folder, monkeypatch, seconds=0.3)
    with log_to(tmp_path / "log", "client"):
        state = serve_until(folder, lambda: begun() >= 3)
    failed = state.snapshot().last_error
    assert failed is not None
    assert failed.code == "FT685"
    log = (tmp_path / "log" / "client.jsonl").read_text(encoding="utf-8")
    assert "it ended with 4: had enough" in log
    assert audit_lines(folder)[-1]["event"] == "stopped"


def test_a_node_that_does_not_start_again_at_once_is_tried_once_more(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = stand_in(folder, monkeypatch, seconds=0.3, mute=(2,))
    serve_until(folder, lambda: begun() >= 3)
    assert audit_lines(folder)[-1]["details"]["reason"] == "the client ended in order"


def test_a_node_that_never_started_is_an_error_that_quotes_it(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(folder, monkeypatch, mute=(1,))
    with pytest.raises(MachineError, match="did not start: node 1") as caught:
        Client.of(folder).serve(threading.Event())
    assert caught.value.problems[0].code == "FT685"
    assert audit_lines(folder)[-1]["details"]["reason"] == "the client ended with FT685"


def test_a_stop_while_the_node_starts_is_no_error(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = folder.path.parent / "slow.sh"
    program.write_text("#!/bin/sh\ntouch slow.begun\nexec sleep 600\n")
    program.chmod(0o700)
    monkeypatch.chdir(folder.path.parent)
    monkeypatch.setattr(node, "program", lambda: [str(program)])
    serve_until(folder, Path("slow.begun").exists)
    assert audit_lines(folder)[-1]["details"]["reason"] == "the client ended in order"


def test_a_second_client_of_a_folder_is_refused_and_disturbs_nothing(folder: SiteFolder) -> None:
    folder.state.mkdir()
    with folder.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write("4711\n")
        held.flush()
        with pytest.raises(MachineError, match="FT688"):
            Client.of(folder).serve(threading.Event())
        assert folder.lock.read_text() == "4711\n"
    assert not folder.audit_log.exists()


def test_a_port_that_another_program_has_is_named(folder: SiteFolder, tmp_path: Path) -> None:
    import socket

    (port,) = free_ports(1)
    text = folder.settings.read_text(encoding="utf-8").replace("node_port: null", f"node_port: {port}")
    folder.settings.write_text(text, encoding="utf-8")
    with socket.create_server(("127.0.0.1", port)), pytest.raises(MachineError, match=f"127.0.0.1:{port}"):
        Client.of(folder).serve(threading.Event())


def test_a_damaged_word_of_the_operator_does_not_end_the_client(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = stand_in(folder, monkeypatch)
    looks = 0

    def damaged_then_enough() -> bool:
        nonlocal looks
        if begun():
            folder.standing.write_text("{")
            looks += 1
        return looks > 50

    state = serve_until(folder, damaged_then_enough)
    assert state.snapshot().paused
    assert begun() == 1
    assert audit_lines(folder)[-1]["details"]["reason"] == "the client ended in order"


def test_of_a_node_that_was_there_before_no_word_counts(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.logs.mkdir(parents=True)
    (folder.logs / "node.log").write_text("SuperNode ID: 6\n" * 3)
    stand_in(folder, monkeypatch)
    found = node.start_node(folder, server="127.0.0.1:1", insecure=True, port=None, alive=lambda: True)
    try:
        assert "ID: 6" not in found.words()
        assert os.stat(folder.secret).st_mode & 0o777 == 0o600
    finally:
        node.end_node(found)


def test_a_site_that_has_left_starts_no_more(folder: SiteFolder) -> None:
    write_standing(folder.standing, "left", operator="me", reason="")
    with pytest.raises(MachineError, match="FT686"):
        Client.of(folder)


def test_without_tls_a_client_speaks_to_this_machine_alone(folder: SiteFolder) -> None:
    assert Client.of(folder, insecure=True).insecure
    text = folder.connection.read_text(encoding="utf-8").replace("127.0.0.1:", "hub.example.org:")
    folder.connection.write_text(text, encoding="utf-8")
    with pytest.raises(MachineError, match="FT687"):
        Client.of(folder, insecure=True)


def test_what_is_long_over_is_forgotten_at_the_start(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = folder.of_run("old")
    old.mkdir(parents=True)
    OptimizerMemory(old, "ear").keep(1, {"m": torch.zeros(2)})
    time = (datetime.now(UTC) - timedelta(days=31)).timestamp()
    for path in (*old.iterdir(), old):
        os.utime(path, (time, time))
    begun = stand_in(folder, monkeypatch)
    serve_until(folder, lambda: begun() == 1)
    assert list(old.iterdir()) == []


@pytest.mark.parametrize("name", ["policy", "settings", "connection", "audit_key"])
def test_a_file_of_the_folder_that_is_missing_is_named(folder: SiteFolder, name: str) -> None:
    path: Path = getattr(folder, name)
    path.unlink()
    with pytest.raises(FedtuneError, match=path.name):
        Client.of(folder).serve(threading.Event())


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "nothing"),
        ("INFO: up\n\nINFO: down\n\n", "INFO: down"),
        (
            "ERROR: Exit Code: 305\nFailed to initialize the connection.\n[SSL: CERTIFICATE_VERIFY_FAILED]\n"
            "For more, visit\nINFO: Finished server process [7]\n",
            "Failed to initialize the connection. [SSL: CERTIFICATE_VERIFY_FAILED]",
        ),
    ],
)
def test_the_last_words_of_a_node_say_why_it_ended(tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "node.log").write_text("ERROR: Exit Code: 1\nof an earlier one\n" + written)
    with subprocess.Popen(["true"]) as process:
        ended = node.Node(
            process=process,
            address="127.0.0.1:1",
            secret=b"",
            log=tmp_path / "node.log",
            log_start=len("ERROR: Exit Code: 1\nof an earlier one\n"),
        )
    assert ended.last_words() == said
