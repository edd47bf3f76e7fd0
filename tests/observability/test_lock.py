"""One process at a time, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fedtune.errors import MachineError, Problem, RunError
from fedtune.observability.lock import LockHeldError, only_one, take_lock

TAKEN = Problem(code="FT667", what="taken", where="here", fix="wait")

HOLDER = """
import sys, time
from pathlib import Path
from fedtune.observability.lock import take_lock
take_lock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_one_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = take_lock(tmp_path / "lock")
    with pytest.raises(LockHeldError) as held:
        take_lock(tmp_path / "lock")
    assert held.value.pid == str(os.getpid())
    os.close(lock)
    os.close(take_lock(tmp_path / "lock"))


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    with holder.stdout:
        assert holder.stdout.readline() == "held\n"
    with pytest.raises(MachineError), only_one(path, TAKEN):
        pytest.fail("two hold it")
    assert path.read_text() == f"{holder.pid}\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=30)
    with only_one(path, TAKEN):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_lock_is_given_back_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), only_one(tmp_path / "lock", TAKEN):
        raise ZeroDivisionError
    with only_one(tmp_path / "lock", TAKEN):
        pass


def test_a_lock_that_cannot_be_opened_is_a_disk_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="FT707"), only_one(tmp_path / "no" / "lock", TAKEN):
        pytest.fail("there is no such folder")
