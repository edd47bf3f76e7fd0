"""The server's own processes: one at a time, brought back when one is killed, and gone when it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from support.cli_federation import SITES, CliFederation, cli_federation, tiny_run

from fedtune.cli import main
from fedtune.coordinator.gate.traffic import read_traffic
from fedtune.observability.events import ClientFailed, RoundAggregated, RoundFinished, RunStarted

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

THREE = {name: SITES[name] for name in ("ear", "eye", "heart")}


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[CliFederation]:
    """One federation for all tests of this file, which use it one after another."""
    path = tmp_path_factory.mktemp("processes") / "federation"
    with cli_federation(path, tiny_model_dir, THREE) as federation:
        yield federation


def adapters(federation: CliFederation, run: str) -> bytes:
    return (federation.coordinator.runs / run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_second_server_is_refused(federation: CliFederation) -> None:
    command = [sys.executable, "-m", "fedtune", "server", "start", str(federation.coordinator.path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode != 0
    assert "FT667: another server serves this folder" in second.stderr
    federation.require_alive()


def test_a_superlink_that_is_killed_is_started_again_and_the_run_ends_as_an_undisturbed_one(
    federation: CliFederation,
) -> None:
    plain = ("secagg=off", "federation.metrics=[examples,held_out_loss]", *tiny_run(federation__rounds=3))
    federation.run("name=calm", *plain)
    federation.want("name=disturbed", *plain)

    def a_round_is_over() -> bool:
        return any(isinstance(e, RoundFinished) and e.round == 1 for e in federation.events("disturbed"))

    federation.wait("the first round", a_round_is_over, seconds=120)
    assert federation.kill_below_server("superlink_process")
    federation.wait("the end", lambda: federation.state_of("disturbed") == "completed", seconds=240)
    assert adapters(federation, "disturbed") == adapters(federation, "calm")
    starts = [event for event in federation.events("disturbed") if isinstance(event, RunStarted)]
    assert len(starts) == 2
    assert federation.status().run is not None


def test_the_traffic_of_every_site_is_counted(federation: CliFederation) -> None:
    traffic = read_traffic(federation.coordinator.traffic)
    assert traffic is not None
    assert len(traffic.nodes) == len(THREE)
    assert all(np.log10(node.bytes_in) > 3 for node in traffic.nodes.values())


def test_a_site_that_is_removed_while_it_is_connected_is_refused(federation: CliFederation) -> None:
    assert main(["server", "remove", str(federation.coordinator.path), "heart"]) == 0
    federation.wait("the removal", lambda: len(federation.status().sites) == 2, seconds=60)
    quick = tiny_run(federation__rounds=1, federation__join_timeout_seconds=10)
    summary = federation.run("name=two", "secagg=off", "federation.metrics=[examples,held_out_loss]", *quick)
    assert summary["status"] == "completed"
    (aggregated,) = (event for event in federation.events("two") if isinstance(event, RoundAggregated))
    assert aggregated.clients == ("ear", "eye")
    assert not [event for event in federation.events("two") if isinstance(event, ClientFailed)]


def test_sigterm_leaves_no_process_behind(federation: CliFederation) -> None:
    server = federation.process("server")
    family = [server, *server.children(recursive=True)]
    assert len(family) >= 2
    server.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=60)
    assert left == []
