"""A site's client as a process with its real Flower node, which looks for a server that is not there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from support.standing_site import audit_lines, standing_site

from fedtune import cli
from fedtune.federation.processes import free_ports
from fedtune.site.folder import SiteFolder

pytestmark = pytest.mark.e2e

START_SECONDS, END_SECONDS = 180.0, 60.0


@pytest.fixture
def folder(tmp_path: Path) -> SiteFolder:
    (health,) = free_ports(1)
    return standing_site(tmp_path, health=f"127.0.0.1:{health}")


@contextmanager
def running(folder: SiteFolder) -> Iterator[tuple[subprocess.Popen[bytes], list[psutil.Process]]]:
    """Start the client, wait for its node, and leave nothing behind."""
    command = [sys.executable, "-m", "fedtune", "client", "start", str(folder.path)]
    with subprocess.Popen(command) as process:
        children: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + START_SECONDS
            while not children or not folder.secret.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.2)
                children = psutil.Process(process.pid).children(recursive=True)
            assert any("supernode_process" in " ".join(each.cmdline()) for each in children)
            yield process, children
        finally:
            for each in (*children, process):
                if each.is_running() if isinstance(each, psutil.Process) else each.poll() is None:
                    each.kill()


def test_sigterm_ends_client_and_node_in_order_and_a_second_client_is_kept_out(
    folder: SiteFolder, capfd: pytest.CaptureFixture[str]
) -> None:
    with running(folder) as (process, children):
        assert cli.main(["client", "start", str(folder.path)]) != 0
        assert "FT688" in capfd.readouterr().err
        assert cli.main(["client", "status", str(folder.path), "--json"]) == 7  # it reaches no server
        status = json.loads(capfd.readouterr().out)
        assert (status["running"], status["site"]) == (True, "ear")
        assert cli.main(["client", "stop", str(folder.path), "--operator", "me"]) == 0
        assert process.wait(timeout=END_SECONDS) == 0
        _, alive = psutil.wait_procs(children, timeout=END_SECONDS)
        assert not alive
    events = [line["event"] for line in audit_lines(folder)]
    assert events == ["started", "stopped", "operator"]
    assert cli.main(["client", "stop", str(folder.path)]) == 0
    assert cli.main(["client", "status", str(folder.path)]) == 7


def test_sigkill_leaves_no_node_behind_and_the_next_client_starts(folder: SiteFolder) -> None:
    with running(folder) as (process, children):
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=END_SECONDS)
        _, alive = psutil.wait_procs(children, timeout=END_SECONDS)
        assert not alive
    with running(folder) as (process, _):
        process.terminate()
        assert process.wait(timeout=END_SECONDS) == 0
    assert [line["event"] for line in audit_lines(folder)] == ["started", "started", "stopped"]
