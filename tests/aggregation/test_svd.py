"""The best adapter of its rank, against the dense truncated decomposition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec
from support.rounds import aggregate, dense_mean, product

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.linear import FEDAVG
from fedtune.aggregation.meter import ErrorMeter
from fedtune.aggregation.svd import SVD
from fedtune.errors import UpdateError
from fedtune.models.adapter import AdapterSpec, initial_adapter
from fedtune.training.delta import Delta

layer = st.tuples(st.integers(1, 8), st.integers(1, 8))
specs = st.builds(
    small_spec,
    st.lists(layer, min_size=1, max_size=2).map(tuple),
    rank=st.integers(1, 4),
    dtype=st.just("float64"),
)
weights = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=5)
seeds = st.integers(0, 2**32)
SPEC = small_spec(((6, 9), (8, 5)), rank=3)


def error(spec: AdapterSpec, adapter: Any, means: list[Any]) -> float:
    return float(
        np.sqrt(
            sum(
                np.sum((mean - product(adapter, pair)) ** 2)
                for mean, pair in zip(means, spec.pairs, strict=True)
            )
        )
    )


@given(specs, weights, seeds)
@settings(max_examples=80)
def test_the_error_is_that_of_the_dense_truncated_svd(
    spec: AdapterSpec, shares: list[float], seed: int
) -> None:
    received = random_adapter(spec, seed)
    deltas = [random_delta(spec, seed + i, scale=0.5) for i in range(1, len(shares) + 1)]
    means = dense_mean(spec, received, deltas, shares)
    got = error(spec, aggregate(SVD, received, deltas, shares), means)
    rank = received[spec.pairs[0][0]].shape[0]
    least = np.sqrt(sum(np.sum(np.linalg.svd(mean, compute_uv=False)[rank:] ** 2) for mean in means))
    scale = np.sqrt(sum(np.sum(mean**2) for mean in means))
    assert got == pytest.approx(least, rel=1e-6, abs=1e-9 * scale)


@given(specs, weights, seeds)
@settings(max_examples=40)
def test_it_is_never_further_from_the_mean_than_fedavg(
    spec: AdapterSpec, shares: list[float], seed: int
) -> None:
    received = random_adapter(spec, seed)
    deltas = [random_delta(spec, seed + i) for i in range(1, len(shares) + 1)]
    means = dense_mean(spec, received, deltas, shares)
    ours, theirs = (
        error(spec, aggregate(method, received, deltas, shares), means) for method in (SVD, FEDAVG)
    )
    assert ours <= theirs + 1e-9 * np.sqrt(sum(np.sum(mean**2) for mean in means))


@given(specs, weights, seeds)
@settings(max_examples=30)
def test_equal_clients_give_that_clients_product(spec: AdapterSpec, shares: list[float], seed: int) -> None:
    received, delta = random_adapter(spec, seed), random_delta(spec, seed + 1)
    result = aggregate(SVD, received, [delta] * len(shares), shares)
    for mean, pair in zip(dense_mean(spec, received, [delta], [1.0]), spec.pairs, strict=True):
        np.testing.assert_allclose(product(result, pair), mean, atol=1e-9 * np.linalg.norm(mean))


@given(specs, seeds, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_clients_does_not_move_the_product(spec: AdapterSpec, seed: int, random: Any) -> None:
    received = random_adapter(spec, seed)
    pairs = [(random_delta(spec, seed + i), float(i)) for i in range(1, 5)]
    first = aggregate(SVD, received, *zip(*pairs, strict=True))
    random.shuffle(pairs)
    again = aggregate(SVD, received, *zip(*pairs, strict=True))
    for pair in spec.pairs:
        one = product(first, pair)
        # Where two singular values are close, the cut itself is badly conditioned: their gap bounds the
        # change.
        np.testing.assert_allclose(product(again, pair), one, atol=1e-6 * (1 + np.linalg.norm(one)))


def test_the_split_is_even_and_the_first_direction_is_the_largest() -> None:
    received = random_adapter(SPEC, 1)
    result = aggregate(SVD, received, [random_delta(SPEC, 2), random_delta(SPEC, 3)], [1.0, 2.0])
    for name_A, name_B in SPEC.pairs:
        rows, columns = (np.linalg.norm(result[name_A], axis=1), np.linalg.norm(result[name_B], axis=0))
        np.testing.assert_allclose(rows, columns, rtol=1e-5)
        assert all(rows[:-1] >= rows[1:])
        assert result[name_A].dtype == np.float32


def test_where_nothing_was_learned_the_adapter_can_still_be_trained() -> None:
    start = initial_adapter(SPEC, seed=0)
    still = Delta(tensors={name: np.zeros(SPEC.shapes[name], "float32") for name in SPEC.names()})
    result = aggregate(SVD, start, [still, still], [1.0, 1.0])
    for name in SPEC.shapes:
        np.testing.assert_array_equal(result[name], start[name])


def test_a_direction_that_the_mean_lacks_keeps_its_row_of_A_and_a_zero_column_of_B() -> None:
    start = initial_adapter(SPEC, seed=0)
    one_column = {name: np.zeros(SPEC.shapes[name], "float32") for name in SPEC.names()}
    for name in SPEC.names(("B",)):
        one_column[name][:, 0] = 1.0
    result = aggregate(SVD, start, [Delta(tensors=one_column)], [1.0])
    for name_A, name_B in SPEC.pairs:
        assert not np.any(result[name_B][:, 1:])
        np.testing.assert_array_equal(result[name_A][1:], start[name_A][1:])


def test_a_client_of_weight_zero_is_checked_and_not_counted() -> None:
    received = random_adapter(SPEC, 0)
    one, two = random_delta(SPEC, 1), random_delta(SPEC, 2)
    with_it, without = (
        aggregate(SVD, received, [one, two], [2.0, 0.0]),
        aggregate(SVD, received, [one], [2.0]),
    )
    assert all(np.array_equal(with_it[name], without[name]) for name in SPEC.shapes)
    with pytest.raises(UpdateError, match="FT507"):
        SVD.start(received).add(Delta(tensors={"unknown": np.zeros(1)}), 0.0)
    with pytest.raises(UpdateError, match="FT506"):
        SVD.start(received).result()


def test_the_same_calls_give_the_same_bits_and_leave_the_received_adapter() -> None:
    received = random_adapter(SPEC, 5)
    before = {name: tensor.tobytes() for name, tensor in received.items()}
    deltas = [random_delta(SPEC, i) for i in range(6, 10)]
    first, second = (aggregate(SVD, received, deltas, [1.0, 2.0, 3.0, 4.0]) for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in SPEC.shapes)
    assert {name: tensor.tobytes() for name, tensor in received.items()} == before


def test_the_meter_reports_what_was_cut() -> None:
    spec = replace(SPEC, dtype="float64")
    received = random_adapter(spec, 5)
    deltas = [random_delta(spec, i) for i in range(6, 9)]
    result, meter = aggregate(SVD, received, deltas, [1.0] * 3), ErrorMeter(spec, received)
    for delta in deltas:
        meter.add(delta, 1.0)
    means = dense_mean(spec, received, deltas, [1.0] * 3)
    whole = np.sqrt(sum(np.sum(mean**2) for mean in means))
    assert meter.result(result) == pytest.approx(error(spec, result, means) / whole, rel=1e-6)


def test_it_is_an_aggregator_that_trains_both_factors() -> None:
    assert isinstance(SVD, Aggregator)
    assert isinstance(SVD.start({}), Accumulator)
    assert SVD.factors(1) == ("A", "B")
    with pytest.raises(ValueError, match="round=0"):
        SVD.factors(0)
