"""Groups under secure aggregation, from configuration to adapter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulation.test_aggregation import stopped_and_resumed
from support import tiny_federation

import fedtune
from fedtune.config.compose import compose
from fedtune.config.derived import clip_bound
from fedtune.federation import rounds, secure_round
from fedtune.federation.secure_groups import drawn_groups
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import initial_adapter
from fedtune.training.delta import Delta

Overrides = Callable[..., list[str]]

NINE = {f"site{number}": 8 for number in range(9)}
GROUPED = {"secagg": "on", "secagg__groups": 3, "secagg__k_min": 3, "federation__rounds": 1}
QUIET = {"aggregation": "ffa", "evaluation__generations": 0, "training__steps_per_round": 2}


@pytest.fixture
def nine(tiny_overrides: Overrides, tmp_path: Path) -> Overrides:
    tiny_federation.write_rows(tmp_path / "rows.jsonl", NINE)
    return lambda **changed: tiny_overrides(**(QUIET | changed))


def test_the_round_is_the_median_of_the_plain_means_of_the_groups(
    nine: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    deltas: list[Delta] = []
    known = rounds.read_uplink

    def recorded(config: Any, delta: Delta, received: Any) -> Delta:
        deltas.append(known(config, delta, received))
        return deltas[-1]

    monkeypatch.setattr(rounds, "read_uplink", recorded)
    fedtune.simulate(nine(name="plain", federation__rounds=1, aggregation__weighting="uniform"))
    overrides = nine(name="groups", **GROUPED)
    run = fedtune.simulate(overrides)
    assert len(deltas) == 9, "under masks the server reads no update"

    config = compose(overrides)
    names = sorted(NINE)  # the order in which updates are added
    groups = drawn_groups(names, 3, config.seed)
    start = initial_adapter(adapter_spec(config.model, config.peft), config.seed)
    final = load_file(run.path / "checkpoints" / "0001" / "adapter.safetensors")
    # n C N / (L W) of `fedtune.secagg.encoding` with n = W = 3 is C / L, and L is about 2^31 / 9.
    error = clip_bound(config) * 9 / 2**31 * 1.01
    for name in deltas[0].tensors:
        means = [
            np.mean(
                [
                    delta.tensors[name].astype(np.float64)
                    for site, delta in zip(names, deltas, strict=True)
                    if groups[site] == group
                ],
                axis=0,
            )
            for group in ("group1", "group2", "group3")
        ]
        expected = np.median(means, axis=0)
        assert not np.allclose(expected, np.mean(means, axis=0), atol=10 * error)
        moved = final[name].astype(np.float64) - start[name]
        assert np.abs(moved - expected).max() <= error + 1e-7 * np.abs(final[name]).max()
    assert run.summary["exact"] is False
    assert run.summary["dropped_groups"] == []


def test_a_false_site_that_breaks_off_takes_its_group_with_it_and_a_stop_changes_nothing(
    nine: Overrides,
) -> None:
    """The site's update is no number: its own encoder refuses it, and its group is not whole."""
    changed = GROUPED | {
        "federation__rounds": 2,
        "federation__min_replies": 6,
        "attack": "not_a_number",
        "attack__sites": "[site1]",
    }
    whole = fedtune.simulate(nine(name="whole", **changed))
    config = compose(nine(name="whole", **changed))
    lost = drawn_groups(sorted(NINE), 3, config.seed)["site1"]
    assert {(each["round"], each["group"]) for each in whole.summary["dropped_groups"]} == {
        (1, lost),
        (2, lost),
    }
    assert [len(row["clients"]) for row in whole.summary["round_table"]] == [0, 6, 6]
    assert whole.summary["held_out_loss"]["federated"] < whole.summary["held_out_loss"]["base"]
    resumed = stopped_and_resumed(nine, 2, **changed)
    one, other = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (whole.path, resumed))
    # Not bit for bit: encoders round by dice of the operating system.
    assert all(np.allclose(one[name], other[name], rtol=0, atol=1e-6) for name in one)


def test_a_group_mean_beyond_the_clip_bound_is_dropped(
    nine: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, calls = secure_round.decode_mean, []

    def forged(*arguments: Any) -> Any:
        mean = known(*arguments)
        calls.append(mean)
        if len(calls) == 1:
            next(iter(mean.tensors.values()))[0, 0] = 5.0
        return mean

    monkeypatch.setattr(secure_round, "decode_mean", forged)
    run = fedtune.simulate(nine(**GROUPED, federation__min_replies=6))
    [dropped] = run.summary["dropped_groups"]
    assert dropped["code"] == "FT921"
    assert "can come of clipped updates" in dropped["reason"]
    assert len(run.summary["round_table"][1]["clients"]) == 6
