"""`fedtune server run` and `status` against a folder whose server is played by the test."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from fedtune.cli import main
from fedtune.commands import server_run
from fedtune.commands.serving import holder
from fedtune.config.compose import compose
from fedtune.coordinator.daemon import Server
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.gate.traffic import TrafficMeter, write_traffic
from fedtune.coordinator.settings import load_settings, written
from fedtune.coordinator.status import RunState, RunStatus, ServerStatus, write_status
from fedtune.coordinator.wanted import WantedRuns
from fedtune.errors import ConfigError
from fedtune.keys.private import new_key, node_public_line, public_hash
from fedtune.observability.lock import take_lock
from fedtune.secagg.entry import fingerprint
from fedtune.simulation.simulate import simulate

CONFIG = compose(["experiment=demo", "backend=deployment", "name=lungs"])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorFolder:
    monkeypatch.setattr(server_run, "POLL_SECONDS", 0.01)
    made = CoordinatorFolder(tmp_path / "hub")
    made.state.mkdir(parents=True)
    made.nodes.mkdir()
    text = written(federation="lungs", address="a:1", listen="127.0.0.1:1", superlink_port=2)
    made.settings.write_text(text)
    made.settings.chmod(0o600)
    return made


def status(state: RunState | None = None, *, pid: int | None = None) -> ServerStatus:
    run = state and RunStatus(name="lungs", state=state, flower_run=1, restarts=0, reason="as it was")
    return ServerStatus(
        time=time.time(),
        pid=os.getpid() if pid is None else pid,
        version="1",
        federation="lungs",
        listen=("127.0.0.1:1",),
        sites=(),
        run=run or None,
    )


@contextmanager
def serving(folder: CoordinatorFolder) -> Iterator[None]:
    lock = take_lock(folder.lock)
    try:
        yield
    finally:
        os.close(lock)


def test_a_server_that_is_just_starting_is_waited_for(folder: CoordinatorFolder) -> None:
    write_status(folder.status, replace(status("failed"), pid=2**22 + 1))  # of the server before it
    with serving(folder):
        later = threading.Timer(0.3, write_status, (folder.status, status()))
        later.start()
        assert server_run.serving(folder).pid == os.getpid()


def test_without_a_server_nobody_waits(folder: CoordinatorFolder, capsys: pytest.CaptureFixture[str]) -> None:
    write_status(folder.status, status())  # a process of this pid is there, but it holds no lock
    began = time.monotonic()
    assert main(["server", "run", str(folder.path), "--detach"]) != 0
    assert "FT669" in capsys.readouterr().err
    assert time.monotonic() - began < server_run.STARTING_SECONDS


def test_the_lock_names_who_holds_it_and_looking_at_it_frees_nothing(folder: CoordinatorFolder) -> None:
    assert holder(folder.lock, "the server") is None
    with serving(folder):
        assert holder(folder.lock, "the server") == os.getpid()
        assert holder(folder.lock, "the server") == os.getpid()
    assert holder(folder.lock, "the server") is None


def test_a_run_that_is_no_longer_wanted_has_not_ended_before_its_state_says_so(
    folder: CoordinatorFolder,
) -> None:
    """The server drops a run from what is wanted a moment after its state was written, or the other way."""
    write_status(folder.status, status("running"))
    later = threading.Timer(0.3, write_status, (folder.status, status("completed")))
    later.start()
    assert server_run.watched(folder, "lungs").state == "completed"


def test_a_run_of_this_name_that_ended_before_is_not_taken_for_the_new_one(
    folder: CoordinatorFolder,
) -> None:
    write_status(folder.status, status("failed"))
    WantedRuns(folder.wanted).add(CONFIG)

    def server() -> None:
        time.sleep(0.2)
        write_status(folder.status, status("stopped"))
        WantedRuns(folder.wanted).drop("lungs")

    threading.Thread(target=server).start()
    assert server_run.watched(folder, "lungs").state == "stopped"


def test_a_server_writes_how_a_run_ended_before_it_wants_it_no_more(folder: CoordinatorFolder) -> None:
    WantedRuns(folder.wanted).add(CONFIG)
    WantedRuns(folder.wanted).ask_to_stop("lungs")
    server = Server(folder=folder, settings=load_settings(folder.settings))
    seen = []
    real = WantedRuns.drop
    with pytest.MonkeyPatch.context() as patch:

        def drop(self: WantedRuns, name: str) -> None:
            seen.append(json.loads(folder.status.read_bytes())["run"]["state"])
            real(self, name)

        patch.setattr(WantedRuns, "drop", drop)
        server._follow_runs(None)  # type: ignore[arg-type]
    assert seen == ["stopped"]


def test_the_status_has_the_traffic_of_each_site_by_its_name(
    folder: CoordinatorFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    ear, gone, meter = new_key().public_key(), new_key().public_key(), TrafficMeter()
    (folder.nodes / "ear.pub").write_bytes(node_public_line(ear, "ear"))
    (folder.nodes / "eye.pub").write_bytes(b"damaged")
    meter.count(fingerprint(public_hash(ear)), bytes_in=7, bytes_out=9)
    meter.count(fingerprint(public_hash(gone)), bytes_in=1, bytes_out=2)
    write_traffic(folder.traffic, meter.snapshot())
    write_status(folder.status, status())
    assert main(["server", "status", str(folder.path), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["running"]
    assert said["traffic"]["sites"]["ear"]["bytes_in"] == 7
    assert list(said["traffic"]["sites"]) == ["ear"]
    assert list(said["traffic"]["removed"]) == [fingerprint(public_hash(gone))]


def test_a_deployment_is_not_simulated() -> None:
    with pytest.raises(ConfigError, match=r"FT105: backend.name is deployment(.|\n)*fedtune server run"):
        simulate(["experiment=demo", "backend=deployment"])


def test_the_command_refuses_it_before_torch_is_imported() -> None:
    code = (
        "import sys; from fedtune.cli import main\n"
        "ended = main(['simulate', 'experiment=demo', 'backend=deployment'])\n"
        "print(ended, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "FT105" in done.stderr
    assert done.stdout.split()[1] == "False"
    assert done.stdout.split()[0] != "0"
