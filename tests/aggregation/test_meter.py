"""The meter against dense products, formed one by one in float64 or in exact arithmetic."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec

from fedtune.aggregation.linear import ALTERNATING, FEDAVG, FFA, LinearAggregator
from fedtune.aggregation.meter import ErrorMeter
from fedtune.errors import UpdateError
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.training.delta import Delta

layer = st.tuples(st.integers(1, 8), st.integers(1, 8))
specs = st.builds(
    small_spec,
    st.lists(layer, min_size=1, max_size=3).map(tuple),
    rank=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float64"]),
)
weights = st.lists(st.floats(0.1, 1e6), min_size=1, max_size=6)
seeds = st.integers(0, 2**32)
scales = st.sampled_from([1e-4, 1e-2, 1.0])

Dense = np.ndarray[Any, np.dtype[np.float64]]


def run_round(
    method: LinearAggregator, received: Adapter, deltas: list[Delta], shares: list[float], spec: AdapterSpec
) -> tuple[Adapter, float]:
    accumulator, meter = method.start(received), ErrorMeter(spec, received)
    for delta, share in zip(deltas, shares, strict=True):
        accumulator.add(delta, share)
        meter.add(delta, share)
    result = accumulator.result()
    return result, meter.result(result)


def products(received: Adapter, deltas: list[Delta], spec: AdapterSpec) -> list[list[Dense]]:
    """B_i A_i of every client and layer, dense."""
    clients = [
        {name: value.astype("float64") + delta.tensors.get(name, 0.0) for name, value in received.items()}
        for delta in deltas
    ]
    return [[client[name_B] @ client[name_A] for name_A, name_B in spec.pairs] for client in clients]


def brute_force(
    received: Adapter, deltas: list[Delta], shares: list[float], new: Adapter, spec: AdapterSpec
) -> float:
    means = [
        np.average(each, axis=0, weights=shares)
        for each in zip(*products(received, deltas, spec), strict=True)
    ]
    got = [new[name_B].astype("float64") @ new[name_A].astype("float64") for name_A, name_B in spec.pairs]
    error = math.sqrt(sum(np.sum((mean - one) ** 2) for mean, one in zip(means, got, strict=True)))
    return error / math.sqrt(sum(np.sum(mean**2) for mean in means))


@given(specs, weights, seeds, scales)
@settings(deadline=None, max_examples=150)
def test_the_meter_equals_dense_brute_force(
    spec: AdapterSpec, shares: list[float], seed: int, scale: float
) -> None:
    received = random_adapter(spec, seed)
    deltas = [random_delta(spec, seed + i, scale=scale) for i in range(1, len(shares) + 1)]
    new, error = run_round(FEDAVG, received, deltas, shares, spec)
    # The oracle subtracts products: its own rounding is 1e-16 of them, the factor covers small denominators.
    assert error == pytest.approx(brute_force(received, deltas, shares, new, spec), rel=1e-5, abs=1e-13)


@given(specs, weights, seeds)
@settings(deadline=None, max_examples=60)
def test_the_meter_equals_brute_force_for_any_new_adapter_whatsoever(
    spec: AdapterSpec, shares: list[float], seed: int
) -> None:
    received, new = random_adapter(spec, seed), random_adapter(spec, seed + 99)
    deltas = [random_delta(spec, seed + i, factors=("B",)) for i in range(1, len(shares) + 1)]
    meter = ErrorMeter(spec, received)
    for delta, share in zip(deltas, shares, strict=True):
        meter.add(delta, share)
    expected = brute_force(received, deltas, shares, new, spec)
    assert meter.result(new) == pytest.approx(expected, rel=1e-6)


@given(st.integers(2, 6), weights, seeds)
@settings(deadline=None, max_examples=60)
def test_the_error_of_fedavg_is_the_cross_covariance_of_the_factors(
    rank: int, shares: list[float], seed: int
) -> None:
    spec = small_spec(((6, 5), (4, 7)), rank=rank, dtype="float64")
    received = random_adapter(spec, seed)
    deltas = [random_delta(spec, seed + i) for i in range(1, len(shares) + 1)]
    _, error = run_round(FEDAVG, received, deltas, shares, spec)
    squared_error = squared_mean = 0.0
    p = np.array(shares) / sum(shares)
    for name_A, name_B in spec.pairs:
        A = np.array([received[name_A] + delta.tensors[name_A] for delta in deltas])
        B = np.array([received[name_B] + delta.tensors[name_B] for delta in deltas])
        A_bar, B_bar = np.tensordot(p, A, 1), np.tensordot(p, B, 1)
        covariance = sum(share * (b - B_bar) @ (a - A_bar) for share, a, b in zip(p, A, B, strict=True))
        squared_error += float(np.sum(covariance**2))
        squared_mean += float(np.sum(sum(share * b @ a for share, a, b in zip(p, A, B, strict=True)) ** 2))
    assert error == pytest.approx(math.sqrt(squared_error / squared_mean), rel=1e-6, abs=1e-14)


@given(specs, weights, seeds, scales, st.sampled_from([(FFA, 1), (ALTERNATING, 1), (ALTERNATING, 2)]))
@settings(deadline=None, max_examples=150)
def test_exact_methods_are_zero_up_to_the_rounding_of_the_result(
    spec: AdapterSpec, shares: list[float], seed: int, scale: float, case: tuple[LinearAggregator, int]
) -> None:
    method, round = case
    received = random_adapter(spec, seed)
    deltas = [
        random_delta(spec, seed + i, factors=method.factors(round), scale=scale)
        for i in range(1, len(shares) + 1)
    ]
    new, error = run_round(method, received, deltas, shares, spec)
    # A product may be small because its factors cancel; rounding is relative to the factors.
    factors = math.sqrt(
        sum(
            float(np.linalg.norm(new[name_B])) ** 2 * float(np.linalg.norm(new[name_A])) ** 2
            for name_A, name_B in spec.pairs
        )
    )
    product = math.sqrt(sum(float(np.linalg.norm(new[b] @ new[a])) ** 2 for a, b in spec.pairs))
    assume(product > 0)
    limit = 1e-6 if spec.dtype == "float32" else 1e-14
    assert error <= limit * factors / product


@pytest.mark.parametrize(("method", "round"), [(FFA, 1), (ALTERNATING, 1), (ALTERNATING, 2)])
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0])
def test_exact_methods_stay_below_1e_6_in_float32(method: LinearAggregator, round: int, scale: float) -> None:
    spec = small_spec(((192, 576), (64, 96)), rank=16)
    received = random_adapter(spec, 0, scale=0.05)
    deltas = [random_delta(spec, i, factors=method.factors(round), scale=scale) for i in range(1, 7)]
    _, error = run_round(method, received, deltas, [1891, 1500, 911, 640, 411, 300], spec)
    assert error <= 1e-6


def test_an_error_far_below_float32_of_the_products_is_still_measured() -> None:
    """In exact rational arithmetic: the error is 1e-9 of the products, which float32 could not hold."""
    spec = small_spec(((1, 1),), rank=1)
    [(name_A, name_B)] = spec.pairs
    received = {name: np.ones((1, 1), "float32") for name in spec.shapes}
    step = float(np.float32(2.0**-15))
    deltas = [
        Delta(tensors={name: np.full((1, 1), sign * step, "float32") for name in spec.shapes})
        for sign in (1, -1)
    ]
    new, error = run_round(FEDAVG, received, deltas, [1.0, 1.0], spec)
    assert new[name_A].item() == new[name_B].item() == 1.0
    one, two = (Fraction(1) + sign * Fraction(step) for sign in (1, -1))
    mean = (one * one + two * two) / 2
    assert error == pytest.approx(float((mean - 1) / mean), rel=1e-12)
    assert error < 1e-9


def test_clients_that_agree_have_no_error() -> None:
    spec = small_spec(dtype="float64")
    delta = random_delta(spec, 1)
    _, error = run_round(FEDAVG, random_adapter(spec, 0), [delta] * 4, [1.0, 2.0, 3.0, 4.0], spec)
    assert error < 1e-14


def test_nothing_learned_is_no_error() -> None:
    spec = small_spec()
    received = {
        name: value * (0 if spec.factor(name) == "B" else 1)
        for name, value in random_adapter(spec, 0).items()
    }
    still = Delta(tensors={name: np.zeros(spec.shapes[name], "float32") for name in spec.names()})
    assert run_round(FEDAVG, received, [still, still], [1.0, 1.0], spec)[1] == 0.0


def test_a_client_of_weight_zero_is_not_measured() -> None:
    spec = small_spec()
    received = random_adapter(spec, 0)
    deltas = [random_delta(spec, i) for i in (1, 2, 3)]
    _, with_it = run_round(FEDAVG, received, deltas, [1.0, 0.0, 2.0], spec)
    _, without = run_round(FEDAVG, received, [deltas[0], deltas[2]], [1.0, 2.0], spec)
    assert with_it == without > 0


def test_weights_are_checked() -> None:
    spec = small_spec()
    meter = ErrorMeter(spec, random_adapter(spec, 0))
    with pytest.raises(UpdateError, match=r"FT506: a client's weight .* got -1"):
        meter.add(random_delta(spec, 1), -1.0)
    with pytest.raises(UpdateError, match="FT506: the weights of 0 clients sum to 0"):
        meter.result(random_adapter(spec, 1))


def test_no_dense_product_is_ever_formed() -> None:
    spec = small_spec(((4096, 4096),), rank=4)
    received = random_adapter(spec, 0)
    deltas = [random_delta(spec, i) for i in (1, 2, 3)]
    tracemalloc.start()
    try:
        _, error = run_round(FEDAVG, received, deltas, [1.0, 2.0, 3.0], spec)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert error > 0
    assert peak < 4096 * 4096 * 8 / 20
