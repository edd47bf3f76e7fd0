"""SCAFFOLD in whole runs: what travels, what is kept, what is refused, and a stop that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulation.test_aggregation import stopped_and_resumed
from simulation.test_simulate import assert_equal_bit_for_bit

import fedtune
from fedtune.config.compose import compose
from fedtune.errors import ConfigError, RunError
from fedtune.federation.control_memory import ControlMemory

Overrides = Callable[..., list[str]]

SETTINGS: dict[str, object] = {
    "training": "scaffold",
    "training__learning_rate": 0.5,
    "aggregation": "alternating",
    "aggregation__weighting": "uniform",
    "evaluation__generations": 0,
    "evaluation__every_rounds": 0,
    "federation__rounds": 4,
    "federation__clients_per_round": 2,
}


def test_a_run_learns_sends_twice_as_much_and_goes_on_bit_for_bit_after_a_stop(
    tiny_overrides: Overrides,
) -> None:
    whole = fedtune.simulate(tiny_overrides(name="whole", **SETTINGS))
    losses = whole.summary["held_out_loss"]
    assert losses["federated"] < losses["base"]
    carried = load_file(whole.path / "checkpoints" / "0004" / "carried.safetensors")
    assert {name.split("/")[0] for name in carried} == {"control"}
    assert all(np.isfinite(value).all() and value.any() for value in carried.values())
    assert not [*(whole.path / "sites").glob("*.control")], "what serves no further round is forgotten"
    plain = fedtune.simulate(
        tiny_overrides(name="plain", **SETTINGS | {"training__control_variates": "false"})
    )
    for way in ("uplink_bytes", "downlink_bytes"):
        assert plain.summary[way] < whole.summary[way]
    assert whole.summary["uplink_bytes"] == pytest.approx(2 * plain.summary["uplink_bytes"], rel=0.05)
    resumed = stopped_and_resumed(tiny_overrides, 3, **SETTINGS)
    assert_equal_bit_for_bit(whole.path, resumed)


@pytest.mark.parametrize(
    ("also", "why"),
    [
        (["aggregation=fedsa"], "keeps factors at the sites"),
        (["aggregation=svd"], "does not average deltas"),
        (["aggregation.weighting=examples"], "corrections would not add up to nothing"),
        (["secagg=on"], "the clip bound of secure aggregation is that of weights"),
        (["defence=median"], "false control variates would pass beside them"),
        (["asynchronous=fedbuff", "speed=lognormal"], "control variates of late updates"),
        (["updates=int8"], "beside an update in few bits"),
        (["aggregation.site_ranks={heart: 2}"], "need one rank at all sites"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_nearest_that_does(also: list[str], why: str) -> None:
    fitting = {"training": "scaffold", "aggregation": "ffa", "aggregation.weighting": "uniform"}
    changed = fitting | dict(each.split("=", 1) for each in also)
    compose([f"{key}={value}" for key, value in fitting.items()])
    with pytest.raises(ConfigError, match=why) as caught:
        compose([f"{key}={value}" for key, value in changed.items()])
    assert {problem.code for problem in caught.value.problems} == {"FT105"}
    assert any("training.control_variates" in problem.where for problem in caught.value.problems)


def test_variates_are_kept_by_round_and_by_tensor(tmp_path: Path) -> None:
    memory = ControlMemory(tmp_path, "heart")
    adapter = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float32)}
    assert not any(value.any() for value in memory.before(1, adapter).values())
    memory.keep(1, {"a": adapter["a"] + 1})
    memory.keep(2, {"b": adapter["b"] + 2})
    assert (memory.before(3, adapter)["a"] == 1).all()
    assert (memory.before(3, adapter)["b"] == 2).all()
    assert not memory.before(2, adapter)["b"].any()
    with pytest.raises(RunError, match=r"FT724: .*b of shape"):
        memory.before(3, {"a": adapter["a"]})
    (tmp_path / "heart.control" / "000002.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="FT724: this site's control variates cannot be read"):
        memory.before(3, adapter)
    ControlMemory.forget(tmp_path)
    assert not any(tmp_path.iterdir())
