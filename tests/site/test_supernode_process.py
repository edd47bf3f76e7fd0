"""A SuperNode that has lost a part of itself ends, so that it is started again."""

from __future__ import annotations

import subprocess
import sys

import pytest

BEGIN = """
import threading, time
from fedtune.site.supernode_process import run_whole

def listens_on():  # as the node's API for its executor does, in a thread that is no daemon
    time.sleep(60)

def breaks():
    raise ValueError("an answer nobody expected")

def give_up():
    threading.Thread(target=listens_on).start()

def lose_the_heartbeat():
    threading.Thread(target=breaks, daemon=True).start()
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("work", "said"),
    [
        ("give_up", "the connection to the coordinator was given up"),
        ("lose_the_heartbeat", "a thread has ended: ValueError"),
    ],
)
def test_a_node_that_lost_a_part_of_itself_ends_and_says_why_last(work: str, said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{BEGIN}\nrun_whole({work})"],
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == said
