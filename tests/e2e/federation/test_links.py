"""Lines between sites and server that are cut, slow or silent."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from support.cli_federation import CliFederation, tiny_run
from support.outcomes import last_adapter, simulated

from fedtune.observability.events import ClientFailed, ClientTrained, QuorumMissed, RoundAggregated

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PLAIN = ("secagg=off", "federation.metrics=[held_out_loss]", "aggregation.weighting=uniform")


def trained(federation: CliFederation, run: str) -> set[str]:
    return {event.client for event in federation.events(run) if isinstance(event, ClientTrained)}


def wait_for_end(federation: CliFederation, run: str) -> str:
    ended = ("completed", "failed", "given_up")
    federation.wait(f"run {run}", lambda: federation.state_of(run) in ended, seconds=400)
    return federation.state_of(run)


def test_a_slow_and_cut_line_changes_nothing(
    federation: CliFederation, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The site that is cut off in mid-round comes back, is asked again, and gives the same update."""
    lines = federation.links
    lines["eye"].delay_seconds = 0.05
    federation.want("name=cut", *PLAIN, *tiny_run(seed=2, federation__round_timeout_seconds=40))
    federation.wait("a first update", lambda: len(trained(federation, "cut")) > 0, seconds=200)
    lines["ear"].cut()
    time.sleep(10)
    lines["ear"].mend()
    assert wait_for_end(federation, "cut") == "completed"
    lines["eye"].delay_seconds = 0.0
    expected = simulated(federation, tmp_path, tiny_model_dir, "seed=2", "aggregation.weighting=uniform")
    adapter = last_adapter(federation.coordinator.runs / "cut", 2, tiny_model_dir)
    for tensor, value in expected.items():
        np.testing.assert_array_equal(adapter[tensor], value, strict=True)


def test_a_silent_line_holds_up_no_one_else(federation: CliFederation) -> None:
    """A firewall that drops: the site is named when its time is over, and the others' round counts."""
    lines = federation.links
    federation.wait("the sites", federation.all_connected, seconds=200)
    lines["ear"].state = "silent"
    quorum = tiny_run(
        seed=3,
        federation__rounds=1,
        federation__min_replies=3,
        federation__round_timeout_seconds=60,
        federation__join_timeout_seconds=30,
    )
    federation.want("name=silent", *PLAIN, *quorum)
    assert wait_for_end(federation, "silent") == "completed"
    lines["ear"].mend()
    events = federation.events("silent")
    assert not [event for event in events if isinstance(event, QuorumMissed)]
    (aggregated,) = (event for event in events if isinstance(event, RoundAggregated))
    assert aggregated.clients == ("eye", "heart", "skin")
    codes = {event.code for event in events if isinstance(event, ClientFailed) and event.client == "ear"}
    assert codes <= {"FT605", "FT606", "FT612"}
    assert codes
