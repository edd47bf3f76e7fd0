"""The algebra of the three averages, against dense products written out by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.linear import ALTERNATING, FEDAVG, FFA, LinearAggregator
from fedtune.config.compose import compose
from fedtune.errors import UpdateError
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays, wire_bytes
from fedtune.updates.encode import encode
from fedtune.updates.protect import protect

SPEC = small_spec()
METHODS = [FEDAVG, FFA, ALTERNATING]
EXACT = [(FFA, 1), (FFA, 2), (ALTERNATING, 1), (ALTERNATING, 2)]

layer = st.tuples(st.integers(1, 6), st.integers(1, 6))
specs = st.builds(
    small_spec,
    st.lists(layer, min_size=1, max_size=3).map(tuple),
    rank=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float64"]),
)
weights = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=6)
seeds = st.integers(0, 2**32)


def aggregate(
    method: LinearAggregator, received: Adapter, deltas: list[Delta], shares: list[float]
) -> Adapter:
    accumulator = method.start(received)
    for delta, share in zip(deltas, shares, strict=True):
        accumulator.add(delta, share)
    return accumulator.result()


def deltas_for(
    spec: AdapterSpec, method: LinearAggregator, round: int, seed: int, clients: int
) -> list[Delta]:
    return [
        random_delta(spec, seed + i, factors=method.factors(round), scale=0.1) for i in range(1, clients + 1)
    ]


def trained(received: Adapter, delta: Delta) -> dict[str, np.ndarray[Any, Any]]:
    return {name: value.astype("float64") + delta.tensors.get(name, 0.0) for name, value in received.items()}


@given(specs, weights, seeds, st.sampled_from(METHODS), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_the_result_is_the_weighted_mean_of_what_clients_trained(
    spec: AdapterSpec, shares: list[float], seed: int, method: LinearAggregator, round: int
) -> None:
    received = random_adapter(spec, seed)
    deltas = deltas_for(spec, method, round, seed, len(shares))
    result = aggregate(method, received, deltas, shares)
    for name in spec.names(method.factors(round)):
        mean = np.average([trained(received, delta)[name] for delta in deltas], axis=0, weights=shares)
        np.testing.assert_allclose(result[name], mean, rtol=1e-6, atol=1e-6)
        assert result[name].dtype == spec.dtype


@given(specs, weights, seeds, st.sampled_from(EXACT))
@settings(deadline=None, max_examples=60)
def test_an_exact_method_reproduces_the_mean_of_the_dense_products(
    spec: AdapterSpec, shares: list[float], seed: int, case: tuple[LinearAggregator, int]
) -> None:
    method, round = case
    received = random_adapter(spec, seed)
    deltas = deltas_for(spec, method, round, seed, len(shares))
    result = aggregate(method, received, deltas, shares)
    for name_A, name_B in spec.pairs:
        products = [trained(received, delta)[name_B] @ trained(received, delta)[name_A] for delta in deltas]
        mean = np.average(products, axis=0, weights=shares)
        got = result[name_B].astype("float64") @ result[name_A].astype("float64")
        scale = np.linalg.norm(result[name_B]) * np.linalg.norm(result[name_A])
        assert np.linalg.norm(got - mean) <= 1e-6 * scale


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("round", [1, 2])
def test_frozen_factors_stay_bitwise_and_the_received_adapter_is_untouched(
    method: LinearAggregator, round: int
) -> None:
    received = random_adapter(SPEC, 7)
    before = {name: tensor.tobytes() for name, tensor in received.items()}
    result = aggregate(method, received, deltas_for(SPEC, method, round, 7, 3), [1.0, 2.0, 3.0])
    for name in SPEC.shapes:
        assert received[name].tobytes() == before[name]
        assert not np.shares_memory(result[name], received[name])
        changed = SPEC.factor(name) in method.factors(round)
        assert (result[name].tobytes() != before[name]) == changed


@given(specs, weights, seeds, st.sampled_from(METHODS))
@settings(deadline=None, max_examples=40)
def test_equal_clients_give_that_client_bitwise(
    spec: AdapterSpec, shares: list[float], seed: int, method: LinearAggregator
) -> None:
    received = random_adapter(spec, seed)
    delta = random_delta(spec, seed + 1, factors=method.factors(1))
    alone = aggregate(method, received, [delta], [1.0])
    together = aggregate(method, received, [delta] * len(shares), shares)
    tolerance = 1e-6 if spec.dtype == "float32" else 1e-13
    for name in spec.shapes:
        np.testing.assert_allclose(together[name], alone[name], rtol=tolerance, atol=tolerance)


@given(specs, weights, seeds, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_the_order_of_clients_matters_to_rounding_only(
    spec: AdapterSpec, shares: list[float], seed: int, random: Any
) -> None:
    received = random_adapter(spec, seed)
    pairs = list(zip(deltas_for(spec, FEDAVG, 1, seed, len(shares)), shares, strict=True))
    forwards = aggregate(FEDAVG, received, *map(list, zip(*pairs, strict=True)))
    random.shuffle(pairs)
    shuffled = aggregate(FEDAVG, received, *map(list, zip(*pairs, strict=True)))
    # Sums are float64: even the rounding of a float32 adapter rarely sees the order.
    tolerance = 2e-7 if spec.dtype == "float32" else 1e-13
    for name in spec.shapes:
        np.testing.assert_allclose(shuffled[name], forwards[name], rtol=tolerance, atol=tolerance)


def test_the_same_order_gives_the_same_bits() -> None:
    spec = small_spec(((64, 48), (16, 64)), rank=8)
    received = random_adapter(spec, 1)
    deltas = deltas_for(spec, FEDAVG, 1, 1, 6)
    shares = [1891.0, 1500.0, 911.0, 640.0, 411.0, 300.0]
    runs = [aggregate(FEDAVG, received, deltas, shares) for _ in range(3)]
    for one, two in itertools.pairwise(runs):
        assert all(one[name].tobytes() == two[name].tobytes() for name in spec.shapes)


def test_sums_are_taken_in_float64_in_the_order_of_adds() -> None:
    spec = small_spec(((1, 1),), rank=1)
    received = {name: np.zeros(shape, "float32") for name, shape in spec.shapes.items()}
    values = np.random.default_rng(3).normal(size=50).astype("float32")
    name = spec.names(("B",))[0]
    total = 0.0
    accumulator = FFA.start(received)
    for weight, value in enumerate(values, start=1):
        accumulator.add(Delta(tensors={name: np.full((1, 1), value)}), weight)
        total += float(value) * weight
    expected = np.float32(total / sum(range(1, 51)))
    assert accumulator.result()[name].item() == expected


def test_memory_does_not_grow_with_clients() -> None:
    accumulator = FEDAVG.start(random_adapter(SPEC, 0))
    for delta in deltas_for(SPEC, FEDAVG, 1, 0, 8):
        accumulator.add(delta, 1.0)
        held = [value for value in vars(accumulator).values() if isinstance(value, dict)]
        assert sum(len(value) for value in held) == 2 * len(SPEC.shapes)


def test_a_client_of_weight_zero_counts_for_nothing() -> None:
    received = random_adapter(SPEC, 0)
    one, two = deltas_for(SPEC, FFA, 1, 0, 2)
    with_it, without = (
        aggregate(FFA, received, [one, two], [3.0, 0.0]),
        aggregate(FFA, received, [one], [3.0]),
    )
    assert all(np.array_equal(with_it[name], without[name]) for name in SPEC.shapes)


@pytest.mark.parametrize("shares", [[], [0.0], [0.0, 0.0], [1e308, 1e308]])
def test_weights_that_cannot_be_divided_by_are_an_error(shares: list[float]) -> None:
    deltas = deltas_for(SPEC, FFA, 1, 0, len(shares))
    small = [
        Delta(tensors={name: tensor * 1e-30 for name, tensor in delta.tensors.items()}) for delta in deltas
    ]
    with pytest.raises(UpdateError, match=f"FT506: the weights of {len(shares)} clients sum to"):
        aggregate(FFA, random_adapter(SPEC, 0), small, shares)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_an_error_with_its_value(weight: float) -> None:
    with pytest.raises(UpdateError, match=f"FT506: a client's weight .* got {weight!r}"):
        FFA.start(random_adapter(SPEC, 0)).add(random_delta(SPEC, 0, factors=("B",)), weight)


def test_deltas_that_differ_from_the_adapter_or_from_each_other_are_refused_whole() -> None:
    received = random_adapter(SPEC, 0)
    accumulator = FFA.start(received)
    good = random_delta(SPEC, 1, factors=("B",))
    accumulator.add(good, 1.0)
    name_B = SPEC.names(("B",))[0]
    bad = Delta(tensors={"unknown": np.zeros(1), name_B: np.ones((1,), "float32")})
    with pytest.raises(UpdateError) as caught:
        accumulator.add(bad, -1.0)
    assert [problem.code for problem in caught.value.problems] == ["FT506", "FT507", "FT507", "FT507"]
    with pytest.raises(UpdateError, match="FT507: it holds no tensors"):
        accumulator.add(Delta(tensors={}), 1.0)
    alone = aggregate(FFA, received, [good], [1.0])
    assert all(np.array_equal(accumulator.result()[name], alone[name]) for name in SPEC.shapes)


def test_a_vector_is_never_broadcast_over_a_matrix() -> None:
    name_B = SPEC.names(("B",))[0]
    with pytest.raises(UpdateError, match=r"has shape \(1,\), the adapter's is \(5, 2\)"):
        FFA.start(random_adapter(SPEC, 0)).add(Delta(tensors={name_B: np.ones((1,), "float32")}), 1.0)


def test_an_overflow_of_the_adapters_type_is_an_error() -> None:
    received = random_adapter(SPEC, 0)
    name_B = SPEC.names(("B",))[0]
    received[name_B][...] = 3e38
    delta = Delta(tensors={name_B: np.full((5, 2), 3e38, "float32")})
    with pytest.raises(UpdateError, match="FT508: 10 of 10 values are not finite, the first is inf"):
        aggregate(FFA, received, [delta], [1.0])


def test_schedules() -> None:
    assert [FEDAVG.factors(round) for round in (1, 2, 3)] == [("A", "B")] * 3
    assert [FFA.factors(round) for round in (1, 2, 3)] == [("B",)] * 3
    assert [ALTERNATING.factors(round) for round in (1, 2, 3, 4)] == [("B",), ("A",), ("B",), ("A",)]
    with pytest.raises(ValueError, match="rounds count from 1, got round=0"):
        ALTERNATING.factors(0)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_methods_are_aggregators_and_say_whether_they_are_exact(method: LinearAggregator) -> None:
    assert isinstance(method, Aggregator)
    assert isinstance(method.start({}), Accumulator)
    assert ("inexact" in method.label) == (not method.exact)


def test_alternating_sends_half_of_what_fedavg_sends() -> None:
    spec = small_spec(((96, 64), (32, 64), (64, 160)), rank=8)

    def sent(delta: Delta) -> int:
        return wire_bytes(to_arrays(encode(protect(delta), compose([]).updates)[0]))

    def uplink(method: LinearAggregator) -> int:
        return sum(sent(random_delta(spec, round, factors=method.factors(round))) for round in (1, 2))

    assert 2 * uplink(ALTERNATING) == uplink(FEDAVG)
