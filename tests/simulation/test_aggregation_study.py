"""The study's arithmetic on numbers that can be checked by hand, and its settings."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedtune.config.compose import compose
from fedtune.config.methods import METHODS

SIMULATIONS = Path(__file__).parents[2] / "simulations"


@pytest.fixture(scope="module")
def study() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SIMULATIONS))
        yield importlib.import_module("aggregation_study")


@pytest.fixture(scope="module")
def tables(study: ModuleType) -> ModuleType:
    return importlib.import_module("study_tables")


def one_run(tables: ModuleType, loss: float, error: float | None = 0.25, up: int = 2**20) -> dict[str, Any]:
    summary = {
        "held_out_loss": {"base": 3.0, "federated": loss},
        "aggregation_error": error,
        "uplink_bytes": up,
        "downlink_bytes": 2**21,
    }
    figures: dict[str, Any] = tables.figures_of(summary, 6.0)
    return figures


@pytest.mark.parametrize(("count", "quantile"), [(2, 12.706), (3, 4.303), (6, 2.571), (11, 2.228), (61, 2.0)])
def test_the_interval_is_students(tables: ModuleType, count: int, quantile: float) -> None:
    values = [float(index % 2) for index in range(count)]
    spread = math.sqrt(sum((value - sum(values) / count) ** 2 for value in values) / (count - 1))
    assert tables.interval(values) == pytest.approx(quantile * spread / math.sqrt(count), rel=1e-3)
    assert tables.interval(values[:1]) is None


def test_figures_are_means_over_seeds(tables: ModuleType) -> None:
    found = tables.summed_up([one_run(tables, loss) for loss in (2.0, 2.1, 2.2)])
    assert found["loss"] == pytest.approx(2.1)
    assert found["gain"] == pytest.approx(0.9)
    assert found["gain_interval"] == pytest.approx(4.303 * 0.1 / math.sqrt(3))
    assert (found["seeds"], found["losses"]) == (3, [2.0, 2.1, 2.2])
    alone = tables.summed_up([one_run(tables, 2.0, None)])
    assert (alone["gain_interval"], alone["error"]) == (None, None)


def test_the_table_shows_every_result(tables: ModuleType) -> None:
    found = tables.summed_up([one_run(tables, loss) for loss in (2.0, 2.2)])
    results = {"0.1/10/4/fedavg": found, "0.1/10/4/svd": found, "iid/10/4/fedavg": found}
    lines = tables.table(results).splitlines()
    assert len(lines) == 5
    assert lines[2] == "| 0.1 | 10 | 4 | `fedavg` | 2.100 | 0.900 | 1.271 | 2.5e-01 | 1024 | 2048 | 6 |"


def test_the_picture_has_a_dot_for_each_run_and_the_mean_of_each_method(tables: ModuleType) -> None:
    plain = tables.summed_up([one_run(tables, loss) for loss in (2.0, 2.2)])
    worse = tables.summed_up([one_run(tables, loss) for loss in (2.1, 2.4)])
    results = {f"{split}/10/4/fedavg": plain for split in ("0.1", "iid")}
    results |= {f"{split}/10/4/svd": worse for split in ("0.1", "iid")}
    drawn = importlib.import_module("study_picture").picture(results)
    assert drawn.startswith("<svg")
    assert drawn.count("run local") == 1 + 2
    assert drawn.count("run centralized") == 1 + 2
    assert "svd: +0.150 ± 0.092 in 4 runs" in drawn


def test_methods_are_compared_run_by_run_of_like_setting_and_seed(tables: ModuleType) -> None:
    plain = tables.summed_up([one_run(tables, loss) for loss in (2.0, 2.6)])
    better = tables.summed_up([one_run(tables, loss, up=2**19) for loss in (1.9, 2.4)])
    text = tables.pairs_table({"0.1/10/4/fedavg": plain, "0.1/10/4/ffa": better, "iid/10/4/fedavg": plain})
    assert "| `ffa` | -0.150 | 0.635 | 2 | 2 | -0.150 |  | 0.50 |" in text
    assert "| `fedavg` | +0.000 | 0.000 | 4 | 0 | +0.000 | +0.000 | 1.00 |" in text


def test_the_attack_table_is_the_share_of_the_clean_gain_that_is_left(tables: ModuleType) -> None:
    clean, hurt = (tables.summed_up([one_run(tables, loss)]) for loss in (2.0, 2.5))
    text = tables.attack_table({"none/none": clean, "none/sign_flip": hurt, "median/none": clean})
    assert "| `none` | 100 % | 50 % |" in text
    assert "| `median` | 100 % |  |" in text


def test_the_best_rate_stands_out(tables: ModuleType) -> None:
    assert "| 4 | `ffa` | 2.500 | **2.250** |" in tables.choice_table({"4/ffa": {"0.01": 2.5, "0.02": 2.25}})


@pytest.mark.parametrize("method", METHODS)
def test_every_run_of_the_study_is_possible(study: ModuleType, method: str) -> None:
    for split in study.SPLITS:
        for clients in study.CLIENTS:
            config = compose([study.EXPERIMENT, *study.overrides_of(method, split, clients, 4, 1)])
            assert (config.aggregation.method, config.peft.rank, config.seed) == (method, 4, 1)
            assert config.name == f"aggregation_study_{method}_{split}_{clients}_4_1"
            assert config.federation.clients_per_round == 10


def test_every_cell_of_the_attack_table_is_possible(study: ModuleType) -> None:
    plain = study.overrides_of("alternating", "iid", 10, 4, 0)
    for lie in ("none", *study.LIES):
        config = compose([study.EXPERIMENT, *plain, *study.lies_of(lie)])
        assert len(config.attack.sites) == (0 if lie == "none" else 2)
    for defence in study.DEFENCES:
        compose([study.EXPERIMENT, *plain, f"defence={defence}"])


def test_parts_can_be_chosen(study: ModuleType) -> None:
    chosen = study._arguments(["--methods", "svd,ffa", "--clients", "10", "peft.rank=2"])
    assert (chosen.methods, chosen.clients, chosen.overrides) == (("svd", "ffa"), (10,), ["peft.rank=2"])
    assert (chosen.seeds, chosen.part) == ((0, 1, 2), study.compare)
    assert study._arguments(["--attacks"]).part is study.attack
