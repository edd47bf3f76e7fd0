"""The study's arithmetic, on numbers that can be checked by hand."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fedtune.config.compose import compose

STUDY = Path(__file__).parents[2] / "simulations" / "did_it_help.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("did_it_help", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_run(federated: float, local: float, centralized: float) -> dict[str, object]:
    losses = {"base": 3.0, "federated": federated, "local": local, "centralized": centralized}
    return {
        "held_out_loss": losses,
        "sites": {"heart": losses | {"train_examples": 1200}},
        "federated_gain_over_centralized_gain": (3.0 - federated) / (3.0 - centralized),
        "seconds": 10.0,
    }


def test_losses_are_means_over_seeds_and_what_is_claimed_has_its_spread(study: ModuleType) -> None:
    result = study.summed_up({0: one_run(2.0, 2.25, 2.0), 1: one_run(2.5, 2.25, 2.0)})
    assert result["held_out_loss"] == {"base": 3.0, "federated": 2.25, "local": 2.25, "centralized": 2.0}
    assert result["local_minus_federated"] == {"mean": 0.0, "min": -0.25, "max": 0.25}
    assert result["federated_gain_over_centralized_gain"] == {"mean": 0.75, "min": 0.5, "max": 1.0}
    assert result["not_better_than_local"] == ["heart"], "equal is not better"


def test_the_comparison_is_reported_on_rows_that_chose_nothing(study: ModuleType) -> None:
    config = compose(["experiment=did_it_help"])
    choosing = compose(["experiment=did_it_help", *study.CHOOSING])
    assert (config.evaluation.rows, choosing.evaluation.rows) == ("held_out", "validation")
    assert config.data.held_out_seed == 0, "the same held-out rows for every seed of the training"
    assert config.federation.rounds == choosing.federation.rounds
    rates = {rate for rate, _ in study.RATES}, {rate for _, rate in study.RATES}
    assert config.training.learning_rate in rates[0]
    assert set(config.baseline_learning_rates.values()) <= rates[1]
