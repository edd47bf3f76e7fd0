"""Server optimizers against the paper's recursion for one number, and against Flower's arithmetic."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec

from fedtune.aggregation.carrying import CarryingAccumulator, CarryingAggregator
from fedtune.aggregation.linear import ALTERNATING, FEDAVG
from fedtune.aggregation.server_step import server_step
from fedtune.aggregation.steered import SteeredAggregator, configured_aggregator
from fedtune.config.compose import compose
from fedtune.config.schema import DefenceConfig, ServerOptimizerConfig
from fedtune.models.adapter import Adapter

NO_DEFENCE = DefenceConfig(name="none", byzantine=0, norm_bound=None, min_cosine=0.0)
ADAPTIVE = ("fedadagrad", "fedadam", "fedyogi")
SPEC = small_spec()

numbers = st.floats(-1, 1).map(lambda value: round(value, 6))


def optimizer(name: Any, **changed: float) -> ServerOptimizerConfig:
    fields = {"learning_rate": 0.1, "momentum": 0.9, "second_momentum": 0.99, "adaptivity": 0.01} | changed
    return ServerOptimizerConfig(name=name, **fields)


def written_out(settings: ServerOptimizerConfig, deltas: list[float]) -> float:
    """Algorithm 2 of Reddi et al. 2021, or FedAvgM, for one number that starts at 0."""
    x, m, v = 0.0, 0.0, settings.adaptivity**2
    for delta in deltas:
        if settings.name == "fedavgm":
            m = settings.momentum * m + delta
            x += settings.learning_rate * m
            continue
        m = settings.momentum * m + (1 - settings.momentum) * delta
        if settings.name == "fedadagrad":
            v = v + delta**2
        elif settings.name == "fedadam":
            v = settings.second_momentum * v + (1 - settings.second_momentum) * delta**2
        else:
            sign = (v > delta**2) - (v < delta**2)
            v = v - (1 - settings.second_momentum) * delta**2 * sign
        x += settings.learning_rate * m / (sqrt(v) + settings.adaptivity)
    return x


@given(st.sampled_from(["fedavgm", *ADAPTIVE]), st.lists(numbers, min_size=1, max_size=6))
def test_many_rounds_are_the_papers_recursion(name: str, deltas: list[float]) -> None:
    chosen, state, x = optimizer(name), {}, 0.0
    for delta in deltas:
        steps, state = server_step(chosen, {"x": np.array([delta])}, state)
        x += float(steps["x"][0])
    assert x == pytest.approx(written_out(chosen, deltas), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["fedavgm", *ADAPTIVE])
def test_the_arithmetic_is_flowers_but_for_its_start_and_its_rate(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    monkeypatch.setattr(TaskIdentity, "_run_id", 1)
    monkeypatch.setattr(TaskIdentity, "_node_id", 1)
    chosen = optimizer(name, momentum=0.8, second_momentum=0.9)
    eta, tau = chosen.learning_rate, chosen.adaptivity
    stream = np.random.default_rng(0)
    x, state = stream.normal(size=(3, 4)), {}
    kwargs = {"eta": eta, "eta_l": 1.0, "beta_1": 0.8, "tau": tau}
    strategies = {
        "fedavgm": lambda: FedAvgM(server_learning_rate=eta, server_momentum=0.8),
        "fedadagrad": lambda: FedAdagrad(eta=eta, eta_l=1.0, tau=tau),
        "fedadam": lambda: FedAdam(**kwargs, beta_2=0.9),
        "fedyogi": lambda: FedYogi(**kwargs, beta_2=0.9),
    }
    theirs = strategies[name]()
    if name in ADAPTIVE:
        theirs.beta_1 = 0.8
        theirs.v_t = {"x": np.full(x.shape, tau**2)}  # as the paper starts
    flower = x.copy()
    for number in range(1, 5):
        delta = stream.normal(size=x.shape)
        steps, state = server_step(chosen, {"x": delta}, state)
        x = x + steps["x"]
        if name == "fedadam":  # take Flower's correction of the rate away
            theirs.eta = eta * (1 - 0.8 ** (number + 1.0)) / sqrt(1 - 0.9 ** (number + 1.0))
        before = ArrayRecord({"x": Array(flower)})
        theirs.current_arrays = before if name == "fedavgm" else {"x": flower}
        arrays, _ = theirs.aggregate_train(number, [reply(flower + delta)])
        assert arrays is not None
        flower = arrays["x"].numpy()
        np.testing.assert_allclose(x, flower, rtol=1e-9)


def reply(values: np.ndarray[Any, Any]) -> Message:
    content = RecordDict(
        {"arrays": ArrayRecord({"x": Array(values)}), "metrics": MetricRecord({"num-examples": 1})}
    )
    return Message(content, dst_node_id=1, message_type="train")


def steered(method: Any, chosen: ServerOptimizerConfig) -> SteeredAggregator:
    return SteeredAggregator(method=method, defence=NO_DEFENCE, optimizer=chosen)


def run_round(
    method: SteeredAggregator, received: Adapter, state: Any, round: int, seed: int
) -> tuple[Adapter, dict[str, Any]]:
    accumulator = method.start_from(received, state)
    for i in (1, 2):
        accumulator.add(random_delta(SPEC, seed + i, factors=method.factors(round), scale=0.1), float(i))
    return accumulator.result(), accumulator.carried()


@given(st.integers(0, 2**32))
@settings(max_examples=20)
def test_fedavgm_of_rate_one_without_momentum_is_the_mean_bit_for_bit(seed: int) -> None:
    received = random_adapter(SPEC, seed)
    plain = optimizer("fedavgm", learning_rate=1.0, momentum=0.0)
    result, _ = run_round(steered(FEDAVG, plain), received, {}, 1, seed)
    mean = FEDAVG.start(received)
    for i in (1, 2):
        mean.add(random_delta(SPEC, seed + i, scale=0.1), float(i))
    assert all(result[name].tobytes() == mean.result()[name].tobytes() for name in SPEC.shapes)


@pytest.mark.parametrize("name", ["fedavgm", *ADAPTIVE])
def test_a_factor_that_a_round_does_not_train_neither_moves_nor_forgets(name: str) -> None:
    method, received = steered(ALTERNATING, optimizer(name)), random_adapter(SPEC, 0)
    first, state = run_round(method, received, {}, 1, 10)
    kept = {key: value.copy() for key, value in state.items()}
    second, after = run_round(method, first, state, 2, 20)
    for name_A, name_B in SPEC.pairs:
        assert first[name_A].tobytes() == received[name_A].tobytes()
        assert second[name_B].tobytes() == first[name_B].tobytes()
        assert np.array_equal(after[f"momentum/{name_B}"], kept[f"momentum/{name_B}"])
        assert f"momentum/{name_A}" in after
    assert all(np.array_equal(state[key], value) for key, value in kept.items()), (
        "the old state is not changed"
    )


def test_what_is_configured_is_what_is_built() -> None:
    assert configured_aggregator(compose(["aggregation=ffa"]), sites=3).name == "ffa"
    built = configured_aggregator(
        compose(["aggregation=ffa", "server_optimizer=fedadam", "defence=median"]), sites=3
    )
    assert isinstance(built, CarryingAggregator)
    assert isinstance(built.start(random_adapter(SPEC, 0)), CarryingAccumulator)
    assert (built.name, built.exact, built.factors(1)) == ("ffa", False, ("B",))
    assert built.label.endswith("; the mean taken by median; the step by fedadam: not the mean")
