"""FedBuff over whole simulated runs of a tiny model."""

from __future__ import annotations

from collections.abc import Callable

from simulation.test_aggregation import QUICK, stopped_and_resumed
from simulation.test_simulate import assert_equal_bit_for_bit

import fedtune
from fedtune.aggregation.registry import aggregator
from fedtune.federation.checkpoint import load_checkpoint
from fedtune.models.adapted import adapter_spec
from fedtune.observability.run_directory import RunDirectory

Overrides = Callable[..., list[str]]

UNEQUAL = {
    "asynchronous": "fedbuff",
    "asynchronous__buffer": 2,
    "speed": "equal",
    "speed__sites": "{ear: 0.4, heart: 1.7}",
}


def test_it_learns_at_unequal_speeds_and_goes_on_bit_for_bit_after_a_stop(tiny_overrides: Overrides) -> None:
    changed = {**UNEQUAL, **QUICK}
    whole = fedtune.simulate(tiny_overrides(name="whole", **changed))
    losses = whole.summary["held_out_loss"]
    assert losses["federated"] < losses["base"]
    assert whole.summary["staleness_max"] > 0
    assert whole.summary["virtual_seconds"] > 0
    assert list(whole.rounds["virtual_seconds"]) == sorted(whole.rounds["virtual_seconds"])
    assert_equal_bit_for_bit(whole.path, stopped_and_resumed(tiny_overrides, 2, **changed))


def test_a_buffer_of_all_sites_of_one_speed_is_fedavg_bit_for_bit(tiny_overrides: Overrides) -> None:
    own = fedtune.simulate(
        tiny_overrides(name="own", asynchronous="fedbuff", asynchronous__buffer=3, speed="equal", **QUICK)
    )
    rounds = fedtune.simulate(
        tiny_overrides(name="rounds", speed="equal", aggregation__error_meter="false", **QUICK)
    )
    final = {}
    for run in (own, rounds):
        spec = adapter_spec(run.config.model, run.config.peft)
        with RunDirectory.create(run.path, resume=True) as directory:
            final[run.path] = load_checkpoint(directory, run.config.federation.rounds, spec).adapter
    assert aggregator(own.config.aggregation).name == "fedavg"
    for name, tensor in final[own.path].items():
        assert tensor.tobytes() == final[rounds.path][name].tobytes(), name
    assert own.summary["held_out_loss"] == rounds.summary["held_out_loss"]
    assert own.summary["virtual_seconds"] == rounds.summary["virtual_seconds"]
