"""A run that is wanted is never forgotten, never doubled, and a damaged file harms no other."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtune.config.compose import compose
from fedtune.coordinator.status import RunStatus, ServerStatus, SiteStatus, read_status, write_status
from fedtune.coordinator.wanted import WantedRuns
from fedtune.errors import FedtuneError, RunError

CONFIG = compose(["experiment=demo", "backend=deployment", "name=lungs"])
OTHER = replace(CONFIG, name="hearts")


def test_what_is_wanted_is_read_back_as_it_was(tmp_path: Path) -> None:
    runs = WantedRuns(tmp_path / "wanted")
    assert runs.all() == []
    runs.add(CONFIG)
    (found,) = runs.all()
    assert (found.config, found.stopped, found.name) == (CONFIG, False, "lungs")
    assert runs.ask_to_stop("lungs")
    assert runs.all()[0].stopped
    runs.drop("lungs")
    assert runs.all() == []
    assert not runs.ask_to_stop("lungs")


@pytest.mark.parametrize("second", [CONFIG, OTHER], ids=["the same", "another"])
def test_one_run_at_a_time(tmp_path: Path, second: object) -> None:
    runs = WantedRuns(tmp_path / "wanted")
    runs.add(CONFIG)
    with pytest.raises(RunError, match="FT665: the run lungs has not ended"):
        runs.add(second)  # type: ignore[arg-type]
    assert [run.name for run in runs.all()] == ["lungs"]


def test_of_many_at_one_instant_one_wins(tmp_path: Path) -> None:
    refused: list[RunError] = []

    def add(number: int) -> None:
        try:
            WantedRuns(tmp_path / "wanted").add(replace(CONFIG, name=f"run{number}"))
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(WantedRuns(tmp_path / "wanted").all()) == 1
    assert len(refused) == 7


def test_a_stop_of_an_earlier_run_does_not_stop_the_next_of_its_name(tmp_path: Path) -> None:
    runs = WantedRuns(tmp_path / "wanted")
    runs.add(CONFIG)
    (tmp_path / "wanted" / "lungs.json").unlink()
    (tmp_path / "wanted" / "lungs.stop").touch()
    runs.add(CONFIG)
    assert not runs.all()[0].stopped


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.binary(max_size=60)
    | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists, max_leaves=5).map(
        lambda value: json.dumps({"v": 1, "config": value}).encode()
    )
    | st.integers(0, 400).map(lambda cut: json.dumps({"v": 1, "config": {"name": "x"}}).encode()[:cut])
)
def test_a_damaged_file_is_named_and_the_others_stand(tmp_path: Path, content: bytes) -> None:
    runs = WantedRuns(tmp_path / "wanted")
    for path in (tmp_path / "wanted").glob("*"):
        path.unlink()
    runs.add(CONFIG)
    (tmp_path / "wanted" / "zzz.json").write_bytes(content)
    found, problems = runs.scan()
    assert [run.name for run in found] == ["lungs"]
    assert [problem.code for problem in problems] == ["FT666"]
    with pytest.raises(RunError, match="FT666"):
        runs.all()


def test_a_file_under_another_name_is_damaged_for_it_could_never_be_dropped(tmp_path: Path) -> None:
    runs = WantedRuns(tmp_path / "wanted")
    runs.add(CONFIG)
    (tmp_path / "wanted" / "lungs.json").rename(tmp_path / "wanted" / "hearts.json")
    assert runs.scan()[0] == []


def test_a_command_that_is_killed_leaves_a_run_whole_or_not_at_all(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fedtune.config.compose import compose\n"
        "from fedtune.coordinator.wanted import WantedRuns\n"
        "runs = WantedRuns(Path(sys.argv[1])); config = compose(['experiment=demo', 'name=lungs'])\n"
        "print('ready', flush=True)\n"
        "while True: runs.add(config); runs.drop('lungs')\n"
    )
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "wanted")], stdout=-1)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
        process.communicate()
        runs = WantedRuns(tmp_path / "wanted")
        found, problems = runs.scan()
        assert (len(found) <= 1, problems) == (True, [])
        for run in found:
            runs.drop(run.name)
        runs.add(CONFIG)  # the lock was the kernel's
        runs.drop("lungs")


STATUS = ServerStatus(
    time=1.5,
    pid=2**22 + 7,
    version="1",
    federation="lungs",
    listen=("0.0.0.0:9092",),
    sites=(SiteStatus(site="ear", node_id=2**63 + 1, online=True, last_activated=""),),
    run=RunStatus(name="lungs", state="running", flower_run=2**63, restarts=1, reason=""),
)


def test_a_status_is_read_back_as_it_was_and_a_dead_server_does_not_run(tmp_path: Path) -> None:
    assert read_status(tmp_path / "status.json") is None
    write_status(tmp_path / "status.json", STATUS)
    assert read_status(tmp_path / "status.json") == STATUS
    assert not STATUS.is_running
    write_status(tmp_path / "status.json", replace(STATUS, run=None))
    assert read_status(tmp_path / "status.json") == replace(STATUS, run=None)


@pytest.mark.parametrize("state", ["waiting", "running", "stopping", "restarting"])
def test_a_run_on_its_way_has_not_ended(state: str) -> None:
    assert STATUS.run is not None
    assert not replace(STATUS.run, state=state).has_ended  # type: ignore[arg-type]


@given(
    content=st.binary(max_size=200) | st.just(b"[" * 20_000) | st.just(b'{"run": 1, "sites": 1, "listen": 1}')
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_status_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    with pytest.raises(FedtuneError, match="FT666"):
        read_status(tmp_path / "status.json")
