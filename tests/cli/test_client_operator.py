"""What a site's operator says, as commands: it is in force when they return, and in the audit log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.standing_site import audit_lines, standing_site

from fedtune import cli
from fedtune.commands import serving
from fedtune.errors import MachineError
from fedtune.site.approvals import Approvals, Subject, read_standing
from fedtune.site.folder import SiteFolder


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    return standing_site(tmp_path)


def client(command: str, folder: SiteFolder, *more: str) -> int:
    return cli.main(["client", command, str(folder.path), *more])


def acted(folder: SiteFolder) -> list[tuple[str, str, str]]:
    details = [line["details"] for line in audit_lines(folder) if line["event"] == "operator"]
    return [(each["action"], each["operator"], each["reason"]) for each in details]


def waiting(folder: SiteFolder, *runs: str, config: str = "c" * 64) -> Approvals:
    approvals = Approvals(folder.approvals, folder.pending)
    for run in runs:
        approvals.ask(Subject(run=run, config=config, base_model="m", bundle="b"), ("20 rounds",))
    return approvals


def test_a_pause_holds_until_resume_and_both_are_written_down(folder: SiteFolder) -> None:
    assert client("pause", folder, "--reason", "maintenance", "--operator", "ada") == 0
    assert read_standing(folder.standing).state == "paused"
    assert read_standing(folder.standing).reason == "maintenance"
    assert client("resume", folder, "--operator", "bob") == 0
    assert read_standing(folder.standing).state == "open"
    assert acted(folder) == [("pause", "ada", "maintenance"), ("resume", "bob", "")]


def test_who_leaves_cannot_come_back_by_pausing(
    folder: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert client("leave", folder, "--yes", "--reason", "enough") == 0
    assert not folder.node_key.exists()
    for command in ("pause", "resume"):
        assert client(command, folder) != 0
        assert "FT646" in capsys.readouterr().err
    assert read_standing(folder.standing).state == "left"
    assert [action for action, _, _ in acted(folder)] == ["leave"]


def test_leaving_asks_first(folder: SiteFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert client("leave", folder) != 0
    assert "FT109" in capsys.readouterr().err
    assert folder.node_key.exists()
    assert read_standing(folder.standing).state == "open"


def test_the_node_key_is_destroyed_even_where_the_client_does_not_end(
    folder: SiteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stays(*_: object) -> bool:
        raise MachineError(serving._stays("the client", "it sleeps", where="process 1"))

    monkeypatch.setattr("fedtune.commands.client_operator.stop_process", stays)
    assert client("leave", folder, "--yes") != 0
    assert not folder.node_key.exists()


def test_runs_that_wait_are_listed_and_one_is_approved_by_name_or_id(
    folder: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    approvals = waiting(folder, "one", "two")
    assert client("approve", folder) == 0
    listed = capsys.readouterr().err
    assert "one  [" in listed
    assert "20 rounds" in listed
    assert client("approve", folder, "one", "--operator", "ada") == 0
    (left,) = approvals.waiting()
    assert left.subject.run == "two"
    assert client("approve", folder, left.subject.id) == 0
    assert approvals.approved(left.subject)
    assert acted(folder)[0][:2] == ("approve", "ada")
    assert client("approve", folder) == 0
    assert "nothing waits" in capsys.readouterr().err


def test_a_name_that_several_runs_have_or_none_is_refused(
    folder: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    approvals = waiting(folder, "one")
    waiting(folder, "one", config="d" * 64)
    assert client("approve", folder, "one") != 0
    said = capsys.readouterr().err
    assert "2 runs named 'one' wait" in said
    assert all(each.subject.id in said for each in approvals.waiting())
    assert client("approve", folder, "none") != 0
    assert "FT646" in capsys.readouterr().err
    assert not folder.approvals.exists()


def test_an_approval_that_cannot_be_written_down_is_none(folder: SiteFolder) -> None:
    approvals = waiting(folder, "one")
    folder.audit_log.mkdir()
    assert client("approve", folder, "one") != 0
    assert not approvals.approved(Subject(run="one", config="c" * 64, base_model="m", bundle="b"))
    assert client("pause", folder) != 0
    assert read_standing(folder.standing).state == "paused"
    assert client("resume", folder) != 0
    assert read_standing(folder.standing).state == "paused"


def test_status_names_what_waits_and_that_nothing_runs(
    folder: SiteFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting(folder, "one")
    assert client("status", folder) == 7
    said = capsys.readouterr().err
    assert "NO CLIENT RUNS" in said
    assert "waits for you: one" in said
    assert client("status", folder, "--json") == 7
    found = json.loads(capsys.readouterr().out)
    assert (found["running"], found["standing"], found["health"]) == (False, "open", None)
    assert found["waiting"][0]["run"] == "one"


# Finding and ending a process by its lock

HOLDER = """
import fcntl, os, signal, sys, time
lock = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX)
if sys.argv[3] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("held", flush=True)
time.sleep(float(sys.argv[2]))
os.pwrite(lock, f"{os.getpid()}\\n".encode(), 0)
time.sleep(600)
"""


def held(lock: Path, *, after: float = 0.0, how: str = "kind") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock), str(after), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    process.stdout.close()
    return process


def test_a_process_is_stopped_even_if_its_pid_comes_after_its_lock(tmp_path: Path) -> None:
    process = held(tmp_path / "lock", after=0.5)
    assert serving.stop_process(tmp_path / "lock", "the client")
    assert process.wait() == -15
    assert not serving.stop_process(tmp_path / "lock", "the client")


def test_a_process_that_does_not_end_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = held(tmp_path / "lock", how="deaf")
    try:
        monkeypatch.setattr(serving, "STOP_SECONDS", 1.0)
        with pytest.raises(MachineError, match=f"process {process.pid}"):
            serving.stop_process(tmp_path / "lock", "the client")
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("text", ["", "0", "-1", "no pid", "\xff"])
def test_a_lock_file_without_a_pid_ends_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    process = held(tmp_path / "lock", after=600)
    try:
        (tmp_path / "lock").write_text(text)
        with monkeypatch.context() as patch:
            patch.setattr(serving, "STOP_SECONDS", 0.3)
            patch.setattr(os, "kill", lambda *_: pytest.fail("nobody is to be ended"))
            with pytest.raises(MachineError, match="FT689"):
                serving.stop_process(tmp_path / "lock", "the client")
    finally:
        process.terminate()
        process.wait()


def test_where_there_is_no_lock_there_is_no_process(tmp_path: Path) -> None:
    assert serving.holder(tmp_path / "lock", "the client") is None
    (tmp_path / "lock").write_text("1\n")
    assert serving.holder(tmp_path / "lock", "the client") is None
