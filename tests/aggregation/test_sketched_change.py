"""Sums of sketches of changes: against the dense truncated SVD, and against what sites accept."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec
from support.rounds import aggregate, dense_mean, product, trained

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.sketched_change import SketchedChangeAggregator, product_bounds, sketched_change
from fedtune.aggregation.svd import SVD
from fedtune.errors import SecureAggregationError
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.secagg.broadcast_product import check_later_product
from fedtune.secagg.encoding import Encoding, greatest_levels
from fedtune.secagg.layout import tensor_bounds
from fedtune.secagg.rounding import decode_mean, encode_update
from fedtune.training.delta import Delta

seeds = st.integers(0, 2**32)
counts = st.integers(1, 4)
layers = st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=2).map(tuple)
dtypes = st.sampled_from(["float32", "float64"])
SPEC = small_spec(((6, 9), (8, 5)), rank=2, dtype="float64")


def wide(spec: AdapterSpec, count: int) -> int:
    return 2 * count * spec.shapes[spec.pairs[0][0]][0]


def balanced(spec: AdapterSpec, seed: int) -> Adapter:
    """An adapter as a round before may have given it."""
    start = random_adapter(spec, seed)
    return aggregate(SVD, start, [random_delta(spec, seed + 1)], [1.0])


def check(spec: AdapterSpec, received: Adapter, previous: Adapter, clip: float, rounds: int = 1) -> None:
    check_later_product(received, previous, product_bounds(spec.shapes, clip), rounds=rounds)


@given(layers, counts, seeds)
@settings(max_examples=60)
def test_wide_enough_it_is_the_best_approximation_of_the_mean_of_the_products(
    shape: tuple[tuple[int, int], ...], count: int, seed: int
) -> None:
    spec = small_spec(shape, rank=2, dtype="float64")
    received, clip = balanced(spec, seed), 1e3
    deltas = [random_delta(spec, seed + i) for i in range(2, count + 2)]
    weights = [float(i) for i in range(1, count + 1)]
    # The received product has a rank of its own beside those of the sites.
    method = SketchedChangeAggregator(width=wide(spec, count + 1), clip=clip)
    sent = [sketched_change(trained(received, delta), received, method.width, clip) for delta in deltas]
    result = aggregate(method, received, sent, weights)
    for pair, M in zip(spec.pairs, dense_mean(spec, received, deltas, weights), strict=True):
        singular = np.linalg.svd(M, compute_uv=False)
        least = np.linalg.norm(singular[2:])
        assert np.linalg.norm(M - product(result, pair)) == pytest.approx(least, abs=1e-6 * np.linalg.norm(M))
    check(spec, result, received, clip)


@given(layers, counts, st.integers(4, 12), st.floats(1e-3, 10), dtypes, st.booleans(), seeds)
@settings(max_examples=150)
def test_whatever_comes_out_of_the_sum_sites_accept_what_an_honest_server_makes_of_it(
    shape: tuple[tuple[int, int], ...],
    count: int,
    width: int,
    clip: float,
    dtype: str,
    first: bool,
    seed: int,
) -> None:
    """Sums of false sites too: no sketches of one matrix at all, or too narrow for what they hold."""
    spec = small_spec(shape, rank=2, dtype=dtype)
    received = balanced(spec, seed)
    if first:
        received |= {name: np.zeros_like(received[name]) for name in spec.names(("B",))}
    stream = np.random.default_rng(seed)
    bounds = {name: bound for pair, bound in product_bounds(spec.shapes, clip).items() for name in pair}
    sums = [
        Delta(
            tensors={
                name: stream.uniform(-bounds[name], bounds[name], size).astype(dtype)
                for name, size in spec.with_rank(width).shapes.items()
            }
        )
        for _ in range(count)
    ]
    method = SketchedChangeAggregator(width=width, clip=clip)
    result = aggregate(method, received, sums, [1.0] * count)
    check(spec, result, received, clip)
    for pair, bound in product_bounds(spec.shapes, clip).items():
        moved = np.linalg.norm(product(result, pair) - product(received, pair))
        assert moved <= 2 * bound * (1 + 1e-5) + 1e-5 * np.linalg.norm(product(received, pair))
    again = aggregate(method, result, sums, [1.0] * count)
    check(spec, again, received, clip, rounds=2)


@given(layers, st.floats(1e-3, 10), st.integers(4, 12), seeds)
@settings(max_examples=60)
def test_a_site_never_sends_more_than_the_bound_of_a_products_change(
    shape: tuple[tuple[int, int], ...], clip: float, width: int, seed: int
) -> None:
    spec = small_spec(shape, rank=2, dtype="float64")
    received = balanced(spec, seed)
    client = trained(received, random_delta(spec, seed + 2, scale=3.0))
    sent = sketched_change(client, received, width, clip)
    for (name_A, name_B), bound in product_bounds(spec.shapes, clip).items():
        (out, _), (_, into) = spec.shapes[name_B], spec.shapes[name_A]
        assert bound == pytest.approx(clip * sqrt(2 * (out + into)))
        for name in (name_A, name_B):
            assert np.abs(sent.tensors[name]).max() <= bound * (1 + 1e-9)
        change = product(client, (name_A, name_B)) - product(received, (name_A, name_B))
        share = min(1.0, bound / np.linalg.norm(change))
        whole = sketched_change(client, received, width, 1e9).tensors
        np.testing.assert_allclose(sent.tensors[name_A], share * whole[name_A], atol=1e-9)
        np.testing.assert_allclose(sent.tensors[name_B], share * whole[name_B], atol=1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_through_the_real_encoding_the_product_is_that_of_svd(dtype: str) -> None:
    spec = small_spec(((12, 16), (8, 10)), rank=2, dtype=dtype)
    received, clip, count = balanced(spec, 0), 2.0, 3
    deltas = [random_delta(spec, i, scale=0.1) for i in range(2, 2 + count)]
    width = wide(spec, count + 1)
    bounds = {name: bound for pair, bound in product_bounds(spec.shapes, clip).items() for name in pair}
    encoding = Encoding(
        tensors=tensor_bounds(spec.with_rank(width).shapes, bounds, vocabulary=0),
        levels=greatest_levels(32, count),
        max_cohort=count,
    )
    encoded = [
        encode_update(sketched_change(trained(received, each), received, width, clip).tensors, encoding)
        for each in deltas
    ]
    vector = np.sum([each.vector for each in encoded], axis=0, dtype=np.uint32)
    lanes = np.sum([each.lanes for each in encoded], axis=0, dtype=np.uint64)
    mean = Delta(tensors=dict(decode_mean(vector, lanes, encoding).tensors))
    result = aggregate(SketchedChangeAggregator(width=width, clip=clip), received, [mean], [1.0])
    best = aggregate(SVD, received, deltas, [1.0] * count)
    for pair in spec.pairs:
        off = np.linalg.norm(product(result, pair) - product(best, pair))
        assert off <= 1e-5 * np.linalg.norm(product(best, pair))
    check(spec, result, received, clip)


def moved_by(spec: AdapterSpec, received: Adapter, lengths: float, clip: float) -> Adapter:
    """A balanced adapter whose products lie so many rho from the received ones, at the same rank."""
    result = dict(received)
    for (name_A, name_B), bound in product_bounds(spec.shapes, clip).items():
        B, A = received[name_B], received[name_A]
        factor = 1 + lengths * bound / np.linalg.norm(B @ A)
        result[name_A], result[name_B] = A * sqrt(factor), B * sqrt(factor)
    return result


def refused(received: Adapter, previous: Adapter, clip: float = 0.1, rounds: int = 1) -> str:
    with pytest.raises(SecureAggregationError) as caught:
        check(SPEC, received, previous, clip, rounds)
    assert {problem.code for problem in caught.value.problems} == {"FT917"}
    return str(caught.value)


def test_a_product_that_moved_further_than_sums_can_move_it_is_refused() -> None:
    previous = balanced(SPEC, 0)
    check(SPEC, previous, previous, 0.1)
    check(SPEC, moved_by(SPEC, previous, 1.99, 0.1), previous, 0.1)
    assert "at most" in refused(moved_by(SPEC, previous, 2.01, 0.1), previous)
    check(SPEC, moved_by(SPEC, previous, 3.99, 0.1), previous, 0.1, rounds=2)
    assert "at most" in refused(moved_by(SPEC, previous, 4.01, 0.1), previous, rounds=2)


def test_other_factors_of_the_same_product_are_refused_and_other_signs_are_not() -> None:
    previous = balanced(SPEC, 0)
    honest = moved_by(SPEC, previous, 1.0, 0.1)
    (name_A, name_B), _ = SPEC.pairs

    def mixed(matrix: np.ndarray) -> Adapter:
        inverse = np.linalg.inv(matrix)
        return honest | {name_A: matrix @ honest[name_A], name_B: honest[name_B] @ inverse}

    check(SPEC, mixed(np.diag([1.0, -1.0])), previous, 0.1)
    check(SPEC, mixed(np.array([[0.0, 1.0], [1.0, 0.0]])), previous, 0.1)
    turn = np.array([[np.cos(0.01), -np.sin(0.01)], [np.sin(0.01), np.cos(0.01)]])
    shear = np.array([[1.0, 0.001], [0.0, 1.0]])
    for matrix in (np.diag([1.001, 1.0]), 100 * np.eye(2), turn, shear):
        assert "balanced" in refused(mixed(matrix), previous)


def test_a_trap_that_the_product_does_not_show_is_refused() -> None:
    """A row of A with no column of B computes nothing, and reads rows out of the gradient of B."""
    (name_A, name_B), _ = SPEC.pairs
    previous = balanced(SPEC, 0)
    silent = dict(previous)
    silent[name_B] = previous[name_B].copy()
    silent[name_B][:, 1] = 0.0
    check(SPEC, silent, previous, 100.0)  # as `shortened` leaves rows that a product has no use for
    trap = silent | {name_A: silent[name_A].copy()}
    trap[name_A][1] = 5.0
    assert "new rows beside columns of zeros" in refused(trap, previous, clip=100.0)
    trap[name_B] = silent[name_B].copy()
    trap[name_B][0, 1] = 1e-9
    assert "balanced" in refused(trap, previous, clip=100.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_and_other_shapes_are_refused(value: float) -> None:
    (name_A, _), _ = SPEC.pairs
    previous = balanced(SPEC, 0)
    broken = previous | {name_A: previous[name_A].copy()}
    broken[name_A][0, 0] = value
    assert "NaN" in refused(broken, previous)
    assert "shape" in refused(previous | {name_A: previous[name_A][:1]}, previous)
    assert "missing" in refused({name: previous[name] for name in previous if name != name_A}, previous)


def test_it_is_an_aggregator_that_sends_what_its_width_says() -> None:
    method = SketchedChangeAggregator(width=5, clip=0.1)
    assert isinstance(method, Aggregator)
    received = balanced(SPEC, 0)
    assert isinstance(method.start(received), Accumulator)
    assert method.factors(1) == ("A", "B")
    with pytest.raises(ValueError, match="round=0"):
        method.factors(0)
    sent = sketched_change(received, received, 5, 0.1)
    assert {name: tensor.shape for name, tensor in sent.tensors.items()} == SPEC.with_rank(5).shapes
    assert all(np.abs(tensor).max() < 1e-14 for tensor in sent.tensors.values()), "no change, no sketch"
