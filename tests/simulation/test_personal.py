"""Models of the sites' own: they change nothing of the federation's, stay, and are told of where allowed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from simulation.test_aggregation import stopped_and_resumed
from simulation.test_simulate import adapter, assert_equal_bit_for_bit
from support.tiny_federation import SIZES

import fedtune
from fedtune.cli import main
from fedtune.commands.runs import open_run
from fedtune.config.compose import compose
from fedtune.config.derived import most_steps
from fedtune.data.tokenize import TokenizedExample
from fedtune.errors import ConfigError
from fedtune.evaluation.loss import held_out_loss
from fedtune.models.adapter import initial_adapter
from fedtune.observability.events import ClientEvaluated, ClientFineTuned, read_events
from fedtune.simulation.sites import load_sites
from fedtune.training.walk import examples_for_round

Overrides = Callable[..., list[str]]

SETTINGS: dict[str, object] = {
    "aggregation": "alternating",
    "evaluation__generations": 0,
    "evaluation__every_rounds": 0,
}
WAYS: dict[str, dict[str, object]] = {
    "ditto": {"personal": "ditto", "personal__pull": 0.01},
    "fine_tuning": {"personal": "fine_tuning", "personal__steps": 3},
}


def own_models(run: Path) -> dict[str, dict[str, np.ndarray]]:
    return {site: load_file(run / "personal" / site / "adapter_model.safetensors") for site in SIZES}


@pytest.mark.parametrize("way", WAYS)
def test_own_models_stay_are_measured_and_leave_the_federation_as_it_is(
    tiny_overrides: Overrides, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fedtune.simulate(tiny_overrides(name="plain", **SETTINGS))
    run = fedtune.simulate(tiny_overrides(name="own", **SETTINGS, **WAYS[way]))
    assert_same_adapter(plain.path, run.path)
    assert plain.summary["uplink_bytes"] == run.summary["uplink_bytes"]
    models = own_models(run.path)
    for name in adapter(run.path):
        values = [models[site][name] for site in SIZES]
        assert not np.array_equal(values[0], values[1])
        assert not any(np.array_equal(value, adapter(run.path)[name]) for value in values)
    model, sites = open_run(str(run.path)).model(), load_sites(run.config)
    for site in (sites.site(index) for index in range(3)):
        model.load_adapter(models[site.name])
        loss = held_out_loss(model, site.held_out, microbatch_tokens=256).loss
        said = run.summary["sites"][site.name]
        assert said["personalised"] == pytest.approx(loss, rel=1e-5)
        assert said["better_personalised"] == (said["personalised"] < said["federated"])
    assert main(["evaluate", str(run.path), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    for name, said in run.summary["sites"].items():
        assert printed["sites"][name]["personalised"] == pytest.approx(said["personalised"], rel=1e-5)
    means = run.summary["held_out_loss"]
    assert means["personalised"] < means["base"]
    assert plain.summary["held_out_loss"]["personalised"] is None
    assert "own model" in (run.path / "report.html").read_text()
    assert "personalised" in (run.path / "adapter" / "README.md").read_text()
    events = read_events(run.path / "rounds.jsonl")
    before = [event for event in events if isinstance(event, ClientEvaluated) and event.round == 0]
    assert all(event.personal_loss is None for event in before)
    assert sum(isinstance(event, ClientFineTuned) for event in events) == (3 if way == "fine_tuning" else 0)
    resumed = stopped_and_resumed(tiny_overrides, 2, **SETTINGS, **WAYS[way])
    assert_equal_bit_for_bit(run.path, resumed)
    again = own_models(resumed)
    for site, tensors in models.items():
        for name, value in tensors.items():
            np.testing.assert_array_equal(again[site][name], value)


def assert_same_adapter(first: Path, second: Path) -> None:
    for name, value in adapter(first).items():
        np.testing.assert_array_equal(adapter(second)[name], value)


def test_a_loss_that_no_metric_names_does_not_leave(tiny_overrides: Overrides) -> None:
    metrics = "[examples,held_out_loss]"
    run = fedtune.simulate(
        tiny_overrides(
            federation__rounds=1, federation__metrics=metrics, **SETTINGS | {"aggregation": "fedsa"},
            **WAYS["fine_tuning"],
        )
    )  # fmt: skip
    assert run.summary["held_out_loss"]["personalised"] is None
    assert run.summary["held_out_loss"]["federated"] is not None
    assert own_models(run.path).keys() == SIZES.keys()


@pytest.mark.parametrize("method", ["fedsa", "fedex", "flora", "svd"])
def test_ditto_needs_a_global_adapter_that_keeps_its_coordinates(method: str) -> None:
    with pytest.raises(ConfigError, match="ditto pulls a site's own adapter to the global one"):
        compose(["personal=ditto", f"aggregation={method}"])
    compose(["personal=fine_tuning", f"aggregation={method}"])


def test_own_models_need_rounds_in_common() -> None:
    with pytest.raises(ConfigError, match="goes by rounds, and under fedbuff sites have none in common"):
        compose(["personal=ditto", "aggregation=ffa", "asynchronous=fedbuff", "speed=lognormal"])


def test_own_models_need_one_rank() -> None:
    with pytest.raises(ConfigError, match="site_ranks gives some a part of it"):
        compose(["personal=ditto", "aggregation=ffa", "aggregation.site_ranks={heart: 2}"])


def test_under_secure_aggregation_a_personal_loss_has_to_be_asked_for_by_name() -> None:
    assert compose(["personal=ditto", "secagg=on", "aggregation=ffa"]).federation.metrics == (
        "held_out_loss",
    )
    assert "personal_loss" in compose(["personal=ditto"]).federation.metrics
    assert "personal_loss" not in compose([]).federation.metrics


def test_a_policy_counts_the_steps_of_the_own_model() -> None:
    shared = most_steps(compose([]))
    assert most_steps(compose(["personal=ditto"])) == 2 * shared
    assert most_steps(compose(["personal=fine_tuning", "personal.steps=99"])) == 99
    assert most_steps(compose(["personal=fine_tuning", "personal.steps=1"])) == shared


def test_ditto_over_two_rounds_is_algorithm_1_of_its_paper(tiny_overrides: Overrides) -> None:
    """v <- v - rate * (grad f(v) + pull * (v - w_t)), with transformers' own loss and plain autograd."""
    pull, rate, steps = 0.5, 0.2, 3
    run = fedtune.simulate(
        tiny_overrides(
            name="oracle",
            aggregation="fedavg",
            personal="ditto",
            personal__pull=pull,
            federation__rounds=2,
            training__optimizer="sgd",
            training__learning_rate=rate,
            training__decay="constant",
            training__warmup_fraction=0,
            training__max_gradient_norm="null",
            training__steps_per_round=steps,
            evaluation__generations=0,
        )
    )
    model, site = open_run(str(run.path)).model(), load_sites(run.config).site(0)
    model.model.train()
    own: dict[str, torch.Tensor] = {}
    for round_number in (1, 2):
        received = (
            checkpoint(run.path, 1) if round_number == 2 else initial_adapter(model.spec, run.config.seed)
        )
        model.load_adapter(received)
        model.set_trainable(("A", "B"))
        parameters = model.parameters()
        walk = examples_for_round(
            len(site.train),
            start=(round_number - 1) * steps,
            count_per_step=run.config.training.examples_per_step,
            steps=steps,
            seed=run.config.seed,
            site=site.name,
        )
        with torch.no_grad():
            for name, value in own.items():
                parameters[name].copy_(value)
        for rows in walk.steps:
            gradients = mean_gradient(model.model, [site.train[row] for row in rows], parameters)
            with torch.no_grad():
                for name, parameter in parameters.items():
                    to = torch.from_numpy(received[name])
                    parameter.sub_(rate * (gradients[name] + pull * (parameter - to)))
        own = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    kept = own_models(run.path)[site.name]
    for name, value in own.items():
        np.testing.assert_allclose(kept[name], value.numpy(), rtol=1e-4, atol=1e-6)


def checkpoint(run: Path, round_number: int) -> dict[str, np.ndarray]:
    return load_file(run / "checkpoints" / f"{round_number:04d}" / "adapter.safetensors")


def mean_gradient(
    model: torch.nn.Module, rows: Sequence[TokenizedExample], parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Of the mean loss over the response tokens of all rows, row by row and without packing."""
    total, targets = torch.zeros(()), 0
    for row in rows:
        tokens, counts = torch.from_numpy(row.token_ids.astype(np.int64)), torch.from_numpy(row.loss_mask)
        logits = model(input_ids=tokens[None]).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
        total = total + losses[counts[1:]].sum()
        targets += int(counts[1:].sum())
    found = torch.autograd.grad(total / targets, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))
