"""A clustered federation on a tiny model: what sites keep, what is told, and a stop that changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulation.test_aggregation import stopped_and_resumed
from simulation.test_simulate import assert_equal_bit_for_bit
from support.tiny_federation import SIZES

import fedtune
from fedtune.cli import main
from fedtune.export.adapter import WEIGHTS_FILE

Overrides = Callable[..., list[str]]

SETTINGS: dict[str, object] = {
    "aggregation": "alternating",
    "personal": "clusters",
    "federation__rounds": 4,
    "evaluation__generations": 0,
    "evaluation__every_rounds": 0,
}


def test_each_site_ends_with_its_clusters_model_and_a_stopped_run_with_the_same_one(
    tiny_overrides: Overrides, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fedtune.simulate(tiny_overrides(name="whole", **SETTINGS))
    told = run.summary["clusters"]
    assert told["round"] == 2
    assert sorted(site for names in told["members"] for site in names) == sorted(SIZES)
    assert len(told["members"]) == 2
    losses = run.summary["held_out_loss"]
    assert losses["personalised"] < losses["base"]
    assert losses["federated"] < losses["base"]
    for number, names in enumerate(told["members"], 1):
        of_cluster = load_file(run.path / "clusters" / str(number) / WEIGHTS_FILE)
        for site in names:
            own = load_file(run.path / "personal" / site / WEIGHTS_FILE)
            for name, value in of_cluster.items():
                np.testing.assert_array_equal(own[name], value)
    assert main(["evaluate", str(run.path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for site, said in run.summary["sites"].items():
        for kind in ("federated", "personalised"):
            assert printed["sites"][site][kind] == pytest.approx(said[kind], rel=1e-5)
    card = (run.path / "adapter" / "README.md").read_text()
    assert "personalised is the model of the site's cluster" in card
    assert "in the folder clusters beside this one" in card
    assert "<h2>Clusters</h2>" in (run.path / "report.html").read_text()
    resumed: Path = stopped_and_resumed(tiny_overrides, 3, **SETTINGS)
    assert_equal_bit_for_bit(run.path, resumed)
    for weights in (run.path / "clusters").glob(f"*/{WEIGHTS_FILE}"):
        assert weights.read_bytes() == (resumed / weights.relative_to(run.path)).read_bytes()
