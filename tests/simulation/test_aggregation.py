"""Every method end to end: simulated on a tiny model, stopped in mid-run, and gone on with bit for bit."""

from __future__ import annotations

import itertools
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from simulation.test_simulate import adapter, assert_equal_bit_for_bit, run_in_process, wait_for
from support.tiny_federation import SIZES

import fedtune
from fedtune.aggregation.registry import aggregator
from fedtune.commands.runs import open_run
from fedtune.config.compose import compose
from fedtune.config.methods import METHODS
from fedtune.errors import ConfigError, RunError
from fedtune.evaluation.loss import held_out_loss
from fedtune.federation.own_factors import OwnFactors
from fedtune.federation.uplink import read_uplink
from fedtune.models.adapter import rank_of
from fedtune.observability.events import ClientTrained, Event, RoundStarted, read_events
from fedtune.simulation.sites import load_sites
from fedtune.training.delta import Delta

Overrides = Callable[..., list[str]]

QUICK: dict[str, object] = {"evaluation__generations": 0, "federation__rounds": 3}


def settings(method: str) -> dict[str, object]:
    return {**QUICK, "aggregation": method}


def stop_in(round_number: int) -> Callable[[Event], None]:
    def observe(event: Event) -> None:
        if isinstance(event, ClientTrained) and event.round == round_number:
            raise KeyboardInterrupt

    return observe


def stopped_and_resumed(overrides: Overrides, round_number: int, **changed: object) -> Path:
    with pytest.raises(KeyboardInterrupt):
        fedtune.simulate(overrides(name="stopped", **changed), observers=[stop_in(round_number)])
    return fedtune.simulate(overrides(name="stopped", resume="true", **changed)).path


@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_and_a_stopped_run_ends_with_the_same_adapter(
    tiny_overrides: Overrides, method: str
) -> None:
    whole = fedtune.simulate(tiny_overrides(name="whole", **settings(method)))
    losses = whole.summary["held_out_loss"]
    assert losses["federated"] < losses["base"]
    resumed = stopped_and_resumed(tiny_overrides, 2, **settings(method))
    assert_equal_bit_for_bit(whole.path, resumed)
    for own in (whole.path / "personal").glob("*/*.safetensors"):
        assert own.read_bytes() == (resumed / own.relative_to(whole.path)).read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_table_says_what_the_method_says(method: str) -> None:
    built = aggregator(compose([f"aggregation={method}"]).aggregation)
    known = METHODS[method]
    assert (built.name, built.exact) == (method, known.exact)
    for number in range(1, 5):
        assert built.factors(number) == known.schedule[(number - 1) % len(known.schedule)]


def test_svd_starts_every_round_with_empty_moments(tiny_overrides: Overrides) -> None:
    kept = fedtune.simulate(tiny_overrides(name="kept", aggregation="svd", **QUICK))
    empty = fedtune.simulate(
        tiny_overrides(name="empty", aggregation="svd", training__keep_optimizer_state="false", **QUICK)
    )
    assert_equal_bit_for_bit(kept.path, empty.path)
    assert not [*(kept.path / "sites").glob("*.moments.*")]


def test_svd_balances_the_factors(tiny_overrides: Overrides) -> None:
    run = fedtune.simulate(tiny_overrides(aggregation="svd", **QUICK))
    tensors = adapter(run.path)
    for name in (name for name in tensors if ".lora_A." in name):
        norm_A, norm_B = (np.linalg.norm(tensors[each]) for each in (name, name.replace("lora_A", "lora_B")))
        np.testing.assert_allclose(norm_A, norm_B, rtol=1e-5)


@pytest.mark.parametrize("method", ["fedex", "flora"])
def test_a_round_is_exact_and_its_side_car_is_part_of_the_exported_adapter(
    tiny_overrides: Overrides, method: str
) -> None:
    run = fedtune.simulate(
        tiny_overrides(aggregation=method, aggregation__side_car_rank="null", evaluation__generations=0)
    )
    assert run.summary["aggregation_error"] <= 1e-6
    assert run.summary["exact"]
    ranks = {tensor.shape[0] for name, tensor in adapter(run.path).items() if ".lora_A." in name}
    assert len(ranks) == 1
    assert ranks.pop() > run.config.peft.rank
    assert_same_loss_when_opened(run)


def test_a_side_car_that_is_cut_makes_a_round_inexact_and_the_report_says_so(
    tiny_overrides: Overrides,
) -> None:
    run = fedtune.simulate(tiny_overrides(aggregation="fedex", aggregation__side_car_rank=1, **QUICK))
    assert not run.summary["exact"]
    assert run.summary["aggregation_error"] > 1e-6


def test_core_sends_a_small_matrix_and_exports_the_lora_adapter_that_computes_the_same(
    tiny_overrides: Overrides,
) -> None:
    run = fedtune.simulate(tiny_overrides(aggregation="core", **QUICK))
    fedavg = fedtune.simulate(tiny_overrides(name="fedavg", **QUICK))
    assert run.summary["uplink_bytes"] < fedavg.summary["uplink_bytes"] / 5
    assert run.summary["aggregation_error"] <= 1e-6
    assert_same_loss_when_opened(run)


def assert_same_loss_when_opened(run: fedtune.Run) -> None:
    """The exported adapter has the loss that the sites reported for the global model."""
    opened = open_run(str(run.path))
    weights = opened.adapter()
    model = opened.model(rank=rank_of(weights))
    model.load_adapter(weights)
    sites = load_sites(run.config)
    losses = [
        held_out_loss(model, sites.site(index).held_out, microbatch_tokens=256).loss for index in range(3)
    ]
    assert np.mean(losses) == pytest.approx(run.summary["held_out_loss"]["federated"], rel=1e-5)


def test_fedsa_shares_A_and_every_site_keeps_a_B_of_its_own(tiny_overrides: Overrides) -> None:
    run = fedtune.simulate(
        tiny_overrides(aggregation="fedsa", evaluation__generations=1, evaluation__max_new_tokens=2)
    )
    personal = {site: load_file(run.path / "personal" / site / "adapter_model.safetensors") for site in SIZES}
    shared = adapter(run.path)
    for name, tensor in shared.items():
        values = [personal[site][name] for site in SIZES]
        if ".lora_A." in name:
            assert all(np.array_equal(tensor, value) for value in values)
        else:
            assert not np.any(tensor)
            assert not any(np.array_equal(one, other) for one, other in itertools.combinations(values, 2))
    sent = [event for event in read_events(run.path / "rounds.jsonl") if isinstance(event, RoundStarted)]
    assert {event.factors for event in sent} == {("A",)}


def test_a_sites_own_model_has_the_loss_that_the_run_reports(tiny_overrides: Overrides) -> None:
    run = fedtune.simulate(tiny_overrides(aggregation="fedsa", **QUICK))
    model = open_run(str(run.path)).model()
    sites = load_sites(run.config)
    for site in (sites.site(index) for index in range(3)):
        weights = load_file(run.path / "personal" / site.name / "adapter_model.safetensors")
        model.load_adapter(weights)
        loss = held_out_loss(model, site.held_out, microbatch_tokens=256).loss
        assert loss == pytest.approx(run.summary["sites"][site.name]["federated"], rel=1e-5)


def test_there_is_no_one_model_to_open(tiny_overrides: Overrides) -> None:
    run = fedtune.simulate(tiny_overrides(aggregation="fedsa", **QUICK))
    with pytest.raises(RunError, match="FT733: this run has no one model: under fedsa each site has its own"):
        open_run(str(run.path)).adapter()
    assert "shared half alone" in (run.path / "adapter" / "README.md").read_text()
    (run.path / "sites" / "ear.own" / "000003.safetensors").write_bytes(b"")
    with pytest.raises(RunError, match="FT723: the factors that this site keeps for itself cannot be read"):
        OwnFactors(run.path / "sites", "ear").personal({}, 4)


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if known.summable])
def test_a_method_that_needs_a_sum_alone_runs_under_secure_aggregation(
    tiny_overrides: Overrides, method: str
) -> None:
    secure = {"secagg": "on", "secagg__k_min": 3, "federation__rounds": 2, "evaluation__generations": 0}
    run = fedtune.simulate(tiny_overrides(name="secure", aggregation=method, **secure))
    plain = fedtune.simulate(
        tiny_overrides(
            name="plain",
            aggregation=method,
            aggregation__weighting="uniform",
            federation__rounds=2,
            evaluation__generations=0,
        )
    )
    assert run.summary["burnt_rounds"] == []
    for name, tensor in adapter(plain.path).items():
        np.testing.assert_allclose(adapter(run.path)[name], tensor, rtol=0, atol=1e-3)


MIXED = "{ear: 1, heart: 3}"


@pytest.mark.parametrize("method", [name for name, known in METHODS.items() if known.other_rows])
def test_sites_of_different_ranks_train_and_resume_together(tiny_overrides: Overrides, method: str) -> None:
    mixed = {**settings(method), "aggregation__site_ranks": MIXED}
    run = fedtune.simulate(tiny_overrides(name="whole", **mixed))
    assert run.summary["held_out_loss"]["federated"] < run.summary["held_out_loss"]["base"]
    assert_equal_bit_for_bit(run.path, stopped_and_resumed(tiny_overrides, 2, **mixed))
    sent = {
        event.client: event.uplink_bytes
        for event in read_events(run.path / "rounds.jsonl")
        if isinstance(event, ClientTrained) and event.round == 1
    }
    if METHODS[method].sketches:
        assert len(set(sent.values())) == 1, "sketches hide the rank"
    else:
        assert sent["ear"] < sent["heart"] < sent["eye"]
    if METHODS[method].other_rows == "kept":
        assert run.summary["aggregation_error"] <= 1e-6


@pytest.mark.parametrize(
    ("method", "feedback"), [("alternating", "true"), ("fedex", "true"), ("svd", "false")]
)
def test_updates_in_few_bits_go_with_any_method_that_sends_deltas(
    tiny_overrides: Overrides, method: str, feedback: str
) -> None:
    few = {**settings(method), "updates": "int8", "updates__error_feedback": feedback}
    if METHODS[method].other_rows:
        few["aggregation__site_ranks"] = MIXED
    run = fedtune.simulate(tiny_overrides(name="whole", **few))
    assert run.summary["held_out_loss"]["federated"] < run.summary["held_out_loss"]["base"]
    assert_equal_bit_for_bit(run.path, stopped_and_resumed(tiny_overrides, 2, **few))


@pytest.mark.parametrize("method", ["ffa", "alternating"])
def test_under_secure_aggregation_nested_ranks_give_the_plain_result(
    tiny_overrides: Overrides, method: str
) -> None:
    mixed = {
        "aggregation": method,
        "aggregation__site_ranks": MIXED,
        "evaluation__generations": 0,
        "federation__rounds": 1,
    }
    secure = fedtune.simulate(tiny_overrides(name="secure", secagg="on", secagg__k_min=3, **mixed))
    plain = fedtune.simulate(tiny_overrides(name="plain", aggregation__weighting="uniform", **mixed))
    for name, tensor in adapter(plain.path).items():
        np.testing.assert_allclose(adapter(secure.path)[name], tensor, rtol=0, atol=1e-6)


def test_a_rank_for_a_site_that_is_not_there_is_refused(tiny_overrides: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"FT105: aggregation\.site_ranks names nose"):
        fedtune.simulate(tiny_overrides(aggregation="ffa", aggregation__site_ranks="{nose: 1}", **QUICK))


@pytest.mark.parametrize("method", ["alternating", "fedavg", "sketch"])
def test_the_server_holds_one_update_at_a_time(
    seven: Overrides, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Delta]] = []
    most = 0

    def watched(*arguments: Any) -> Delta:
        nonlocal most
        delta = read_uplink(*arguments)
        alive.append(weakref.ref(delta))
        most = max(most, sum(ref() is not None for ref in alive))
        return delta

    monkeypatch.setattr("fedtune.federation.rounds.read_uplink", watched)
    fedtune.simulate(
        seven(aggregation=method, aggregation__error_meter="false", attack="none", attack__sites="[]")
    )
    assert len(alive) == 14
    assert most <= 2, "one is added while the next is read"


@pytest.mark.e2e
@pytest.mark.parametrize(
    "changed",
    [
        {"aggregation": "alternating", "server_optimizer": "fedyogi"},
        {"aggregation": "fedex", "aggregation__side_car_rank": 6},
        {"aggregation": "fedsa"},
    ],
    ids=lambda changed: str(changed["aggregation"]),
)
def test_a_run_with_state_that_is_killed_ends_with_the_same_adapter(
    tiny_overrides: Overrides, changed: dict[str, object]
) -> None:
    whole = fedtune.simulate(tiny_overrides(name="whole", **QUICK, **changed)).path
    process = run_in_process(tiny_overrides(name="killed", **QUICK, **changed))
    wait_for(whole.parent / "killed" / "rounds.jsonl", '"round":2,"client":"eye"', process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = fedtune.simulate(tiny_overrides(name="killed", resume="true", **QUICK, **changed)).path
    assert_equal_bit_for_bit(whole, killed)
