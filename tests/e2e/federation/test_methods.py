"""Aggregation methods, models of the sites' own, and judges, between real processes."""

from __future__ import annotations

from math import isfinite
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.cli_federation import SITES, CliFederation, tiny_run
from support.outcomes import last_adapter, simulated

from fedtune.config.compose import compose
from fedtune.federation.own_factors import personal_folder
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import initial_adapter
from fedtune.observability.events import ClientTrained, Clustered, GateJudged, RoundAggregated, read_events

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

METRICS = "federation.metrics=[examples,held_out_loss,personal_loss]"
WEIGHTS = "adapter_model.safetensors"


def deployed_and_simulated(
    federation: CliFederation, model: Path, folder: Path, name: str, *overrides: str
) -> Path:
    """Run the same in both ways, and see that the last adapters are the same bits; returns the simulation."""
    settings = (METRICS, *overrides)
    assert federation.run(f"name={name}", "secagg=off", *tiny_run(), *settings)["status"] == "completed"
    deployed = last_adapter(federation.coordinator.runs / name, 2, model)
    for tensor, expected in simulated(federation, folder, model, *settings).items():
        np.testing.assert_array_equal(deployed[tensor], expected, strict=True)
    return folder / "simulated"


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("svd", ("aggregation=svd",)),
        ("alternating", ("aggregation=alternating",)),
        ("sketch", ("aggregation=sketch", "aggregation.sketch_width=32")),
        ("median", ("defence=median",)),
        ("fedadam", ("server_optimizer=fedadam",)),
        (
            "scaffold",
            (
                *("training=scaffold", "training.steps_per_round=3", "training.examples_per_step=4"),
                *("training.microbatch_tokens=256", "training.threads=1", "aggregation.weighting=uniform"),
            ),
        ),
        ("ranks", ("aggregation=alternating", "aggregation.site_ranks={heart: 2}")),
        ("gated", ("gate=sites",)),
    ],
)
def test_a_run_gives_the_adapter_of_a_simulation_bit_for_bit(
    federation: CliFederation,
    tiny_model_dir: Path,
    tmp_path: Path,
    name: str,
    overrides: tuple[str, ...],
) -> None:
    deployed_and_simulated(federation, tiny_model_dir, tmp_path, name, *overrides)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("fedsa", ("aggregation=fedsa",)),
        ("ditto", ("personal=ditto",)),
        ("fine_tuning", ("personal=fine_tuning", "personal.steps=3")),
    ],
)
def test_each_site_has_the_model_of_its_own_that_a_simulation_gives_it(
    federation: CliFederation,
    tiny_model_dir: Path,
    tmp_path: Path,
    name: str,
    overrides: tuple[str, ...],
) -> None:
    run = deployed_and_simulated(federation, tiny_model_dir, tmp_path, name, *overrides)
    for site in SITES:
        own = load_file(federation.sites[site].path / "state" / "runs" / name / "personal" / WEIGHTS)
        expected = load_file(personal_folder(run, site) / WEIGHTS)
        assert own.keys() == expected.keys()
        for tensor, values in expected.items():
            np.testing.assert_array_equal(own[tensor], values, strict=True)
        others = load_file(personal_folder(run, next(each for each in SITES if each != site)) / WEIGHTS)
        assert any(not np.array_equal(own[tensor], others[tensor]) for tensor in own)


def test_each_site_has_the_model_of_its_cluster_that_a_simulation_gives_it(
    federation: CliFederation, tiny_model_dir: Path, tmp_path: Path
) -> None:
    clusters = ("personal=clusters", "personal.warm_up_rounds=0")
    run = deployed_and_simulated(federation, tiny_model_dir, tmp_path, "clusters", *clusters)
    told, wanted = (
        [event.clusters for event in events if isinstance(event, Clustered)]
        for events in (federation.events("clusters"), read_events(run / "rounds.jsonl"))
    )
    assert told == wanted
    assert sorted(len(members) for members in told[0]) == [1, len(SITES) - 1]
    for number, members in enumerate(told[0], 1):
        expected = load_file(run / "clusters" / str(number) / WEIGHTS)
        at_coordinator = federation.coordinator.runs / "clusters" / "clusters" / str(number)
        at_sites = [
            federation.sites[site].path / "state" / "runs" / "clusters" / "personal" for site in members
        ]
        for folder in (at_coordinator, *at_sites):
            found = load_file(folder / WEIGHTS)
            assert found.keys() == expected.keys()
            for tensor, values in expected.items():
                np.testing.assert_array_equal(found[tensor], values, strict=True)


def test_a_gate_takes_back_a_round_that_moved_too_far(
    federation: CliFederation, tiny_model_dir: Path
) -> None:
    summary = federation.run(
        "name=refused", "secagg=off", "gate=sites", "gate.norm_bound=1e-6", METRICS, *tiny_run()
    )
    assert summary["status"] == "completed"
    judged = [event for event in federation.events("refused") if isinstance(event, GateJudged)]
    assert [(event.round, event.passed) for event in judged] == [(0, True), (1, False), (2, False)]
    config = compose([*tiny_run(model__name=tiny_model_dir), "name=shape"])
    begun = initial_adapter(adapter_spec(config.model, config.peft), config.seed)
    ended = last_adapter(federation.coordinator.runs / "refused", 2, tiny_model_dir)
    for tensor, values in begun.items():
        np.testing.assert_array_equal(ended[tensor], values, strict=True)


def test_sites_at_their_own_pace_train_one_model(federation: CliFederation) -> None:
    settings = tiny_run(federation__rounds=6)
    summary = federation.run("name=fedbuff", "secagg=off", "asynchronous=fedbuff", METRICS, *settings)
    assert summary["status"] == "completed"
    events = federation.events("fedbuff")
    steps = [event for event in events if isinstance(event, RoundAggregated)]
    assert [event.round for event in steps] == [1, 2, 3, 4, 5, 6]
    updates = [event for event in events if isinstance(event, ClientTrained)]
    assert {event.client for event in updates} == set(SITES)
    assert len(updates) >= 3 * len(steps)
    base, last = (summary["held_out_loss"][name] for name in ("base", "federated"))
    assert isfinite(last)
    assert last < base
