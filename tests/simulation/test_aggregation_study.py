"""The study's arithmetic on numbers that can be checked by hand, and its settings."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedtune.config.compose import compose
from fedtune.config.methods import METHODS

STUDY = Path(__file__).parents[2] / "simulations" / "aggregation_study.py"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("aggregation_study", STUDY)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_run(loss: float, error: float | None = 0.25) -> dict[str, Any]:
    return {
        "held_out_loss": {"base": 3.0, "federated": loss},
        "aggregation_error": error,
        "uplink_bytes": 2**20,
        "downlink_bytes": 2**21,
        "seconds": 60.0,
    }


def test_losses_are_means_over_seeds_with_the_interval_of_students_t(study: ModuleType) -> None:
    runs = [study.figures_of(one_run(loss)) for loss in (2.0, 2.1, 2.2)]
    found = study.summed_up(runs)
    assert found["loss"] == pytest.approx(2.1)
    assert found["gain"] == pytest.approx(0.9)
    assert found["loss_interval"] == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert (found["seeds"], found["losses"]) == (3, [2.0, 2.1, 2.2])
    alone = study.summed_up([study.figures_of(one_run(2.0, None))])
    assert (alone["loss_interval"], alone["error"]) == (None, None)


def test_tables_and_picture_show_every_result(study: ModuleType) -> None:
    found = study.summed_up([study.figures_of(one_run(loss)) for loss in (2.0, 2.2)])
    results = {"0.1/10/4/fedavg": found, "0.1/10/4/svd": found, "iid/10/4/fedavg": found}
    lines = study.table(results).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| 0.1 | 10 | 4 | `fedavg` | 2.100 | 1.271 | 2.5e-01 | 1.00 | 2.00 | 60 |")
    picture = study.picture(results)
    assert picture.startswith("<svg")
    assert picture.count("2.100") >= 3


def test_the_attack_table_is_the_share_of_the_clean_gain_that_is_left(study: ModuleType) -> None:
    clean, hurt = (study.summed_up([study.figures_of(one_run(loss))]) for loss in (2.0, 2.5))
    text = study.attack_table({"none/none": clean, "none/sign_flip": hurt, "median/none": clean})
    assert "| `none` | 100 % | 50 % |" in text
    assert "| `median` | 100 % |  |" in text


@pytest.mark.parametrize("method", METHODS)
def test_every_run_of_the_study_is_possible(study: ModuleType, method: str) -> None:
    for split in study.SPLITS:
        config = compose(["experiment=aggregation_study", *study.overrides_of(method, split, 10, 4, 1)])
        assert (config.aggregation.method, config.peft.rank, config.seed) == (method, 4, 1)
        assert config.name == f"aggregation_study_{method}_{split}_10_4_1"


def test_parts_can_be_chosen(study: ModuleType) -> None:
    chosen = study._arguments(["--methods", "svd,ffa", "--clients", "10", "peft.rank=2"])
    assert (chosen.methods, chosen.clients, chosen.overrides) == (("svd", "ffa"), (10,), ["peft.rank=2"])
    assert chosen.seeds == (0, 1, 2)
