"""Sketches of products, against the dense products and their best approximation."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec
from support.rounds import aggregate, dense_mean, product, trained

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.ranks import first_rows
from fedtune.aggregation.sketch import SketchAggregator, recovered, sketched
from fedtune.aggregation.svd import SVD
from fedtune.models.adapter import Adapter, AdapterSpec, initial_adapter
from fedtune.training.delta import Delta

weights = st.lists(st.floats(0.1, 1e3), min_size=1, max_size=4)
seeds = st.integers(0, 2**32)
SPEC = small_spec(((30, 40), (25, 20)), rank=2, dtype="float64")


def of_clients(spec: AdapterSpec, received: Adapter, deltas: list[Delta], width: int) -> list[Delta]:
    return [sketched(trained(received, delta), spec, width) for delta in deltas]


@given(weights, seeds, st.integers(0, 4))
@settings(max_examples=40)
def test_wide_enough_it_is_the_best_adapter_of_its_rank(shares: list[float], seed: int, more: int) -> None:
    received = random_adapter(SPEC, seed)
    deltas = [random_delta(SPEC, seed + i) for i in range(1, len(shares) + 1)]
    width = 2 * 2 * len(shares) + more
    result = aggregate(
        SketchAggregator(width=width), received, of_clients(SPEC, received, deltas, width), shares
    )
    best = aggregate(SVD, received, deltas, shares)
    for pair in SPEC.pairs:
        expected = product(best, pair)
        np.testing.assert_allclose(product(result, pair), expected, atol=1e-6 * np.linalg.norm(expected))


@given(seeds, st.integers(1, 6), st.integers(0, 6))
@settings(max_examples=40)
def test_a_product_whose_rank_is_below_the_width_is_recovered(seed: int, rank: int, more: int) -> None:
    wide = SPEC.with_rank(rank)
    adapter, width = random_adapter(wide, seed), 2 * rank + more
    sketches = sketched(adapter, wide, width).tensors
    for name_A, name_B in wide.pairs:
        Q, X = recovered(sketches[name_B], sketches[name_A], name_A, 1e-12)
        dense = product(adapter, (name_A, name_B))
        np.testing.assert_allclose(Q @ X, dense, atol=1e-6 * np.linalg.norm(dense))


def test_sums_of_sketches_are_sketches_of_the_sum() -> None:
    received, shares = random_adapter(SPEC, 0), [1.0, 2.0, 5.0]
    deltas = [random_delta(SPEC, i) for i in (1, 2, 3)]
    sketches = of_clients(SPEC, received, deltas, 9)
    for (name_A, name_B), mean in zip(SPEC.pairs, dense_mean(SPEC, received, deltas, shares), strict=True):
        left, singular, right = np.linalg.svd(mean)
        whole = {name_A: np.diag(singular) @ right[: len(singular)], name_B: left[:, : len(singular)]}
        spec = AdapterSpec(
            shapes={name: value.shape for name, value in whole.items()}, scaling=1.0, dtype="float64"
        )
        of_mean = sketched(whole, spec, 9).tensors
        for name in (name_A, name_B):
            total = np.average([each.tensors[name] for each in sketches], axis=0, weights=shares)
            np.testing.assert_allclose(total, of_mean[name], atol=1e-10)


def test_sites_of_any_rank_send_the_same_shapes() -> None:
    small = first_rows(random_adapter(SPEC, 0), 1)
    shapes = {name: tensor.shape for name, tensor in sketched(small, SPEC.with_rank(1), 7).tensors.items()}
    assert shapes == dict(SPEC.with_rank(7).shapes)


def test_too_narrow_it_is_an_approximation_and_stays_one() -> None:
    received = random_adapter(SPEC, 0)
    deltas = [random_delta(SPEC, i) for i in range(1, 9)]
    result = aggregate(SketchAggregator(width=8), received, of_clients(SPEC, received, deltas, 8), [1.0] * 8)
    for mean, pair in zip(dense_mean(SPEC, received, deltas, [1.0] * 8), SPEC.pairs, strict=True):
        assert np.linalg.norm(product(result, pair) - mean) < 4 * np.linalg.norm(mean)


def test_where_nothing_was_learned_the_adapter_can_still_be_trained() -> None:
    spec = small_spec(((30, 40),), rank=2)
    start = initial_adapter(spec, 0)
    result = aggregate(SketchAggregator(width=6), start, [sketched(start, spec, 6)], [1.0])
    assert all(np.array_equal(result[name], start[name]) for name in spec.shapes)


def test_memory_does_not_grow_with_clients() -> None:
    spec = small_spec(((512, 512),), rank=4)
    received, width = random_adapter(spec, 0), 16

    def peak(clients: int) -> int:
        accumulator = SketchAggregator(width=width).start(received)
        tracemalloc.start()
        for i in range(clients):
            accumulator.add(random_delta(spec.with_rank(width), i), 1.0)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(100) <= 1.05 * peak(10)


def test_it_is_an_aggregator() -> None:
    method = SketchAggregator(width=3)
    assert isinstance(method, Aggregator)
    assert isinstance(method.start(random_adapter(SPEC, 0)), Accumulator)
    with pytest.raises(ValueError, match="round=0"):
        method.factors(0)
