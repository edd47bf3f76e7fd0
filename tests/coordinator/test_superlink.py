"""What outlives a SuperLink is found by whose it is, and ended; nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedtune.coordinator.folder import HOME_VARIABLE, CoordinatorFolder
from fedtune.coordinator.superlink import end_leftovers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(99)"
)


def sleeper(
    home: Path, code: str = "import time; print(flush=True); time.sleep(99)"
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {HOME_VARIABLE: str(home)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_leftovers_end_and_those_of_another_coordinator_stay(tmp_path: Path) -> None:
    ours, stubborn = sleeper(tmp_path / "hub"), sleeper(tmp_path / "hub", STUBBORN)
    other = sleeper(tmp_path / "hub2")
    try:
        end_leftovers(CoordinatorFolder(tmp_path / "hub"), seconds=0.5)
        assert (ours.wait(timeout=30), stubborn.wait(timeout=30)) == (-15, -9)
        assert other.poll() is None
    finally:
        for process in (ours, stubborn, other):
            process.kill()
            process.communicate()
