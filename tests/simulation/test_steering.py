"""Server optimizers, defences and lies in whole simulated runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simulation.test_aggregation import QUICK, stopped_and_resumed
from simulation.test_simulate import assert_equal_bit_for_bit

import fedtune
from fedtune.errors import UpdateError

Overrides = Callable[..., list[str]]


@pytest.mark.parametrize("optimizer", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_a_server_optimizer_goes_on_bit_for_bit_after_a_stop(
    tiny_overrides: Overrides, optimizer: str
) -> None:
    changed = {"aggregation": "alternating", "server_optimizer": optimizer, **QUICK}
    whole = fedtune.simulate(tiny_overrides(name="whole", **changed))
    assert whole.summary["held_out_loss"]["federated"] < whole.summary["held_out_loss"]["base"]
    assert not whole.summary["exact"]
    assert (whole.path / "checkpoints" / "0003" / "carried.safetensors").exists()
    assert_equal_bit_for_bit(whole.path, stopped_and_resumed(tiny_overrides, 2, **changed))


@pytest.mark.parametrize(
    "defence",
    ["median", "trimmed_mean", "krum", "multi_krum", "bulyan", "norm_bound"],
)
def test_a_defence_learns_beside_a_site_that_lies(seven: Overrides, defence: str) -> None:
    attack = {"attack": "sign_flip", "attack__strength": 100}
    defended = fedtune.simulate(seven(name=defence, defence=defence, **attack))
    losses = defended.summary["held_out_loss"]
    assert losses["federated"] < losses["base"]


def test_without_a_defence_one_site_that_lies_is_enough(seven: Overrides) -> None:
    losses = fedtune.simulate(seven(attack="sign_flip", attack__strength=100)).summary["held_out_loss"]
    assert losses["federated"] > losses["base"]


@pytest.mark.parametrize("kind", ["sign_flip", "noise", "zero", "free_rider"])
def test_lies_are_well_formed_and_the_round_goes_on(seven: Overrides, kind: str) -> None:
    run = fedtune.simulate(seven(attack=kind, defence="median"))
    assert run.summary["failures"] == []
    assert run.summary["status"] == "completed"


def test_an_update_that_is_no_number_is_refused_and_its_site_named(seven: Overrides) -> None:
    run = fedtune.simulate(seven(attack="not_a_number", federation__min_replies=6))
    assert {(failure["client"], failure["code"]) for failure in run.summary["failures"]} == {
        ("site1", "FT504")
    }


def test_a_round_with_too_few_updates_for_its_defence_is_not_aggregated(seven: Overrides) -> None:
    with pytest.raises(UpdateError, match=r"FT510: bulyan with defence\.byzantine=1 needs 7 updates, 6 came"):
        fedtune.simulate(seven(attack="not_a_number", defence="bulyan", federation__min_replies=6))
