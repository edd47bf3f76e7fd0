"""FedEx-LoRA and FLoRA against the dense mean of the products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec
from support.rounds import Dense, aggregate, dense_mean, product

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.carrying import (
    CarryingAccumulator,
    CarryingAggregator,
    as_carried,
    begin,
    side_car_of,
    with_side_car,
)
from fedtune.aggregation.linear import FEDAVG
from fedtune.aggregation.meter import ErrorMeter
from fedtune.aggregation.residual import ResidualAggregator, ResidualMean, fedex, flora
from fedtune.models.adapter import Adapter, AdapterSpec, initial_adapter, rank_of
from fedtune.training.delta import Delta

layer = st.tuples(st.integers(1, 8), st.integers(1, 8))
specs = st.builds(
    small_spec,
    st.lists(layer, min_size=1, max_size=2).map(tuple),
    rank=st.integers(1, 3),
    dtype=st.sampled_from(["float32", "float64"]),
)
weights = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=5)
seeds = st.integers(0, 2**32)
makers = st.sampled_from([fedex, flora])
SPEC = small_spec(((9, 8), (7, 12)), rank=2)


def run_round(
    method: ResidualAggregator,
    received: Adapter,
    side_car: Adapter,
    deltas: list[Delta],
    shares: list[float],
) -> tuple[Adapter, Adapter, ResidualMean]:
    accumulator = method.start_from(received, as_carried(side_car))
    for delta, share in zip(deltas, shares, strict=True):
        accumulator.add(delta, share)
    return accumulator.result(), side_car_of(accumulator.carried()), accumulator


def products(adapter: Adapter, side_car: Adapter, spec: AdapterSpec) -> list[Dense]:
    return [product(adapter, pair) + (product(side_car, pair) if side_car else 0.0) for pair in spec.pairs]


@given(specs, weights, seeds, makers, st.integers(0, 3))
@settings(max_examples=80)
def test_a_round_reproduces_the_mean_of_the_products_with_whatever_stood_beside(
    spec: AdapterSpec, shares: list[float], seed: int, make: type, beside: int
) -> None:
    received = random_adapter(spec, seed)
    side_car = random_adapter(spec.with_rank(beside), seed + 50) if beside else {}
    deltas = [random_delta(spec, seed + i, scale=0.3) for i in range(1, len(shares) + 1)]
    new, new_side_car, accumulator = run_round(make(None), received, side_car, deltas, shares)
    assert accumulator.exact
    expected = [
        mean + old - product(received, pair)
        for mean, old, pair in zip(
            dense_mean(spec, received, deltas, shares),
            products(received, side_car, spec),
            spec.pairs,
            strict=True,
        )
    ]
    norms = [np.linalg.norm(each) for each in products(received, side_car, spec)]
    for got, mean, norm in zip(products(new, new_side_car, spec), expected, norms, strict=True):
        assert np.linalg.norm(got - mean) <= 1e-6 * (np.linalg.norm(mean) + norm)


@given(specs, weights, seeds, makers)
@settings(max_examples=40)
def test_the_meter_sees_the_side_car(spec: AdapterSpec, shares: list[float], seed: int, make: type) -> None:
    received, side_car = random_adapter(spec, seed), random_adapter(spec.with_rank(2), seed + 9)
    deltas = [random_delta(spec, seed + i, scale=0.3) for i in range(1, len(shares) + 1)]
    new, new_side_car, _ = run_round(make(1), received, side_car, deltas, shares)
    meter = ErrorMeter(spec, received)
    for delta, share in zip(deltas, shares, strict=True):
        meter.add(delta, share)
    means = [
        mean + product(side_car, pair)
        for mean, pair in zip(dense_mean(spec, received, deltas, shares), spec.pairs, strict=True)
    ]
    gaps = [
        np.linalg.norm(mean - got) for mean, got in zip(means, products(new, new_side_car, spec), strict=True)
    ]
    expected = np.linalg.norm(gaps) / np.linalg.norm([np.linalg.norm(mean) for mean in means])
    assert meter.result(new, side_car, new_side_car) == pytest.approx(float(expected), rel=1e-4, abs=1e-7)


def test_the_factors_of_fedex_are_those_of_fedavg_bit_for_bit() -> None:
    received = random_adapter(SPEC, 0)
    deltas = [random_delta(SPEC, i) for i in (1, 2, 3)]
    new, _, _ = run_round(fedex(None), received, {}, deltas, [1.0, 2.0, 3.0])
    same = aggregate(FEDAVG, received, deltas, [1.0, 2.0, 3.0])
    assert all(new[name].tobytes() == same[name].tobytes() for name in SPEC.shapes)


def test_the_residual_is_the_cross_covariance_of_the_papers_definition() -> None:
    spec = small_spec(((9, 8), (7, 12)), rank=2, dtype="float64")
    received, shares = random_adapter(spec, 0), np.array([0.2, 0.3, 0.5])
    deltas = [random_delta(spec, i) for i in (1, 2, 3)]
    new, side_car, _ = run_round(fedex(None), received, {}, deltas, list(shares))
    for mean, pair in zip(dense_mean(spec, received, deltas, list(shares)), spec.pairs, strict=True):
        np.testing.assert_allclose(product(side_car, pair), mean - product(new, pair), atol=1e-10)


def test_flora_starts_its_adapter_again() -> None:
    received = random_adapter(SPEC, 0)
    new, side_car, _ = run_round(flora(None), received, {}, [random_delta(SPEC, 1)] * 2, [1.0, 1.0])
    for name_A, name_B in SPEC.pairs:
        np.testing.assert_array_equal(new[name_A], received[name_A])
        assert not np.any(new[name_B])
    assert rank_of(side_car) == 2, "equal clients span what one of them does"


@pytest.mark.parametrize("make", [fedex, flora])
def test_a_side_car_that_would_grow_too_large_is_cut_to_the_best_of_its_rank_and_says_so(make: type) -> None:
    spec = small_spec(((9, 8), (7, 12)), rank=2, dtype="float64")
    received = random_adapter(spec, 0)
    deltas = [random_delta(spec, i) for i in (1, 2, 3)]
    _, whole, _ = run_round(make(None), received, {}, deltas, [1.0] * 3)
    _, cut, accumulator = run_round(make(3), received, {}, deltas, [1.0] * 3)
    assert not accumulator.exact
    assert rank_of(cut) == 3 < rank_of(whole)
    for pair in spec.pairs:
        dense = product(whole, pair)
        least = np.sqrt(np.sum(np.linalg.svd(dense, compute_uv=False)[3:] ** 2))
        assert np.linalg.norm(dense - product(cut, pair)) == pytest.approx(least, rel=1e-9, abs=1e-9)


def test_over_many_rounds_the_side_car_stays_within_its_rank_and_no_layer_is_larger_than_full() -> None:
    spec = small_spec(((3, 4),), rank=2)
    adapter, side_car = initial_adapter(spec, 0), Adapter()
    for number in range(5):
        deltas = [random_delta(spec, 10 * number + i) for i in range(4)]
        adapter, side_car, accumulator = run_round(fedex(None), adapter, side_car, deltas, [1.0] * 4)
        assert accumulator.exact
        assert rank_of(side_car) <= 3


def test_with_equal_clients_there_is_no_side_car() -> None:
    delta = random_delta(SPEC, 1)
    _, side_car, accumulator = run_round(fedex(4), random_adapter(SPEC, 0), {}, [delta] * 3, [1.0] * 3)
    assert side_car == {}
    assert accumulator.exact


@given(seeds, st.integers(1, 4))
@settings(max_examples=20)
def test_two_adapters_in_one_compute_what_both_do(seed: int, rank: int) -> None:
    adapter, beside = random_adapter(SPEC, seed), random_adapter(SPEC.with_rank(rank), seed + 1)
    both = with_side_car(adapter, beside)
    for got, expected, pair in zip(
        products(both, {}, SPEC), products(adapter, beside, SPEC), SPEC.pairs, strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-9)
        assert both[pair[0]].shape[0] == 2 + rank
    assert with_side_car(adapter, {}) is adapter


def test_what_is_remembered_is_not_changed_by_the_next_round() -> None:
    received, side_car = random_adapter(SPEC, 0), random_adapter(SPEC.with_rank(3), 1)
    before = {name: tensor.tobytes() for name, tensor in (received | as_carried(side_car)).items()}
    run_round(fedex(2), received, side_car, [random_delta(SPEC, 2), random_delta(SPEC, 3)], [1.0, 1.0])
    after = {name: tensor.tobytes() for name, tensor in (received | as_carried(side_car)).items()}
    assert after == before


def test_they_are_carrying_aggregators_and_others_are_not() -> None:
    for make in (fedex, flora):
        assert isinstance(make(None), CarryingAggregator)
        assert isinstance(make(None), Aggregator)
        assert isinstance(begin(make(None), {}, {}), CarryingAccumulator)
        assert make(1).factors(2) == ("A", "B")
        with pytest.raises(ValueError, match="round=0"):
            make(1).factors(0)
    assert not isinstance(begin(FEDAVG, {}, {}), CarryingAccumulator)
    assert isinstance(fedex(1).start({}), Accumulator)
