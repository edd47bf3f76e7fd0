"""A trial on one machine, without TLS, keys of nodes and gate."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cli_federation import CliFederation, tiny_run

from fedtune.coordinator.status import read_status
from fedtune.observability.events import RoundAggregated

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_a_federation_without_tls_runs_on_loopback_and_says_what_it_lacks(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    (tmp_path / "federation").mkdir()
    federation = CliFederation(path=tmp_path / "federation", insecure=True)
    federation.make(tiny_model_dir, {"ear": 12, "eye": 20})
    try:
        federation.start_server()
        status = federation.coordinator.status
        federation.wait("the server", lambda: read_status(status) is not None, seconds=120)
        for name in federation.sites:
            federation.start_site(name)
        plain = ("secagg=off", "federation.metrics=[held_out_loss]", "aggregation.weighting=uniform")
        summary = federation.run("name=trial", *plain, *tiny_run(federation__rounds=1), seconds=400)
    finally:
        federation.stop()
    assert summary["status"] == "completed"
    (aggregated,) = (event for event in federation.events("trial") if isinstance(event, RoundAggregated))
    assert aggregated.clients == ("ear", "eye")
    said = (federation.path / "server.log").read_text(encoding="utf-8")
    assert "WITHOUT TLS, node keys and gate" in said
