"""A gate in whole simulated runs: rounds are taken back, and a stop changes nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulation.test_aggregation import QUICK, stopped_and_resumed
from simulation.test_simulate import assert_equal_bit_for_bit

import fedtune
from fedtune.config.compose import compose
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import initial_adapter

Overrides = Callable[..., list[str]]

WRECKED = {"attack": "sign_flip", "attack__strength": 300, "attack__sites": "[heart]", "aggregation": "ffa"}


def test_a_wrecked_round_is_taken_back_and_a_stop_changes_nothing(tiny_overrides: Overrides) -> None:
    changed = {**QUICK, **WRECKED, "gate": "sites", "server_optimizer": "fedavgm"}
    whole = fedtune.simulate(tiny_overrides(name="whole", **changed))
    summary = whole.summary
    assert summary["rolled_back_rounds"]
    assert summary["held_out_loss"]["federated"] <= summary["held_out_loss"]["base"] + 0.1 * summary["rounds"]
    assert_equal_bit_for_bit(whole.path, stopped_and_resumed(tiny_overrides, 2, **changed))


def test_all_rounds_bad_leaves_the_seeded_start(tiny_overrides: Overrides) -> None:
    changed = {**QUICK, **WRECKED, "gate": "sites", "gate__norm_bound": 1e-6}
    overrides = tiny_overrides(**changed)
    run = fedtune.simulate(overrides)
    rounds = run.summary["rounds"]
    assert run.summary["rolled_back_rounds"] == list(range(1, rounds + 1))
    config = compose(overrides)
    start = initial_adapter(adapter_spec(config.model, config.peft), config.seed)
    final = load_file(run.path / "checkpoints" / f"{rounds:04}" / "adapter.safetensors")
    assert all(np.array_equal(final[name], start[name]) for name in start)
    losses = run.summary["held_out_loss"]
    assert losses["federated"] == losses["base"]
    assert [row["passed"] for row in run.summary["round_table"]] == [True] + [False] * rounds


def test_the_servers_own_rows_judge(tiny_overrides: Overrides, tmp_path: Path) -> None:
    rows = [{"instruction": f"Define {n}", "output": f"Finding {n} is seen."} for n in range(4)]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changed = {**QUICK, **WRECKED, "gate": "server", "gate__files": f"[{own}]"}
    run = fedtune.simulate(tiny_overrides(**changed))
    assert run.summary["rolled_back_rounds"]


@pytest.mark.parametrize("secagg", ["off", "on"])
def test_an_honest_run_passes_and_is_the_same_as_without_a_gate(
    tiny_overrides: Overrides, secagg: str
) -> None:
    changed = {**QUICK, "aggregation": "ffa", "secagg": secagg, "federation__rounds": 1}
    if secagg == "on":
        changed["secagg__k_min"] = 3
    with_gate = fedtune.simulate(tiny_overrides(name="gate", gate="sites", **changed))
    assert with_gate.summary["rolled_back_rounds"] == []
    if secagg == "off":
        without = fedtune.simulate(tiny_overrides(name="none", **changed))
        a, b = (
            load_file(run.path / "checkpoints" / "0001" / "adapter.safetensors")
            for run in (with_gate, without)
        )
        assert all(np.array_equal(a[name], b[name]) for name in a)
