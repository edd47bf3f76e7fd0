"""Sites of different ranks, against dense products of what each of them computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec
from support.rounds import Dense, aggregate, product

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.carrying import as_carried, side_car_of, with_side_car
from fedtune.aggregation.linear import ALTERNATING, FFA, ZERO_PADDING
from fedtune.aggregation.ranks import first_rows, full_delta, other_rows
from fedtune.aggregation.residual import flora
from fedtune.aggregation.svd import SVD
from fedtune.models.adapter import Adapter
from fedtune.training.delta import Delta

SPEC = small_spec(((6, 9), (8, 5)), rank=4, dtype="float64")
ranks = st.lists(st.integers(1, 4), min_size=1, max_size=5)
seeds = st.integers(0, 2**32)


def site_deltas(method: Aggregator, round: int, chosen: list[int], seed: int) -> list[Delta]:
    return [
        random_delta(SPEC.with_rank(rank), seed + i, factors=method.factors(round))
        for i, rank in enumerate(chosen, start=1)
    ]


def site_model(received: Adapter, delta: Delta, rank: int, *, rest: bool) -> Adapter:
    """What a site computes with after its training, as one adapter."""
    part = first_rows(received, rank)
    trained = {name: value + delta.tensors.get(name, 0.0) for name, value in part.items()}
    return with_side_car(trained, other_rows(received, rank)) if rest else trained


def means(
    received: Adapter, deltas: list[Delta], chosen: list[int], weights: list[float], *, rest: bool
) -> list[Dense]:
    models = [
        site_model(received, delta, rank, rest=rest) for delta, rank in zip(deltas, chosen, strict=True)
    ]
    return [
        np.average([product(model, pair) for model in models], axis=0, weights=weights) for pair in SPEC.pairs
    ]


@given(ranks, seeds, st.sampled_from([(FFA, 1), (ALTERNATING, 1), (ALTERNATING, 2)]))
@settings(max_examples=60)
def test_nested_rows_are_exact_where_one_factor_is_the_same_everywhere(
    chosen: list[int], seed: int, case: tuple[Aggregator, int]
) -> None:
    method, round = case
    received = random_adapter(SPEC, seed)
    deltas = site_deltas(method, round, chosen, seed)
    weights = [float(i) for i in range(1, len(chosen) + 1)]
    result = aggregate(method, received, [full_delta(delta, received, "kept") for delta in deltas], weights)
    expected = means(received, deltas, chosen, weights, rest=True)
    for mean, pair in zip(expected, SPEC.pairs, strict=True):
        np.testing.assert_allclose(product(result, pair), mean, atol=1e-10 * (1 + np.linalg.norm(mean)))


@given(ranks, seeds)
@settings(max_examples=40)
def test_svd_and_flora_take_any_ranks_by_nature(chosen: list[int], seed: int) -> None:
    received = random_adapter(SPEC, seed)
    deltas = site_deltas(SVD, 1, chosen, seed)
    weights = [float(i) for i in range(1, len(chosen) + 1)]
    whole = [full_delta(delta, received, "dropped") for delta in deltas]
    best = aggregate(SVD, received, whole, weights)
    accumulator = flora(None).start_from(received, as_carried({}))
    for delta, weight in zip(whole, weights, strict=True):
        accumulator.add(delta, weight)
    accumulator.result()
    stacked = side_car_of(accumulator.carried())
    expected = means(received, deltas, chosen, weights, rest=False)
    for mean, pair in zip(expected, SPEC.pairs, strict=True):
        least = np.sqrt(np.sum(np.linalg.svd(mean, compute_uv=False)[4:] ** 2))
        got = np.linalg.norm(mean - product(best, pair))
        assert got == pytest.approx(least, rel=1e-6, abs=1e-9 * np.linalg.norm(mean))
        np.testing.assert_allclose(product(stacked, pair), mean, atol=1e-9 * np.linalg.norm(mean))


def test_zero_padding_averages_missing_rows_as_zeros_and_so_shrinks_them() -> None:
    received = random_adapter(SPEC, 0)
    still = [
        Delta(tensors={name: np.zeros(shape) for name, shape in SPEC.with_rank(rank).shapes.items()})
        for rank in (4, 2)
    ]
    whole = [full_delta(delta, received, "dropped") for delta in still]
    result = aggregate(ZERO_PADDING, received, whole, [1.0, 3.0])
    for name_A, name_B in SPEC.pairs:
        np.testing.assert_allclose(result[name_A][:2], received[name_A][:2])
        np.testing.assert_allclose(result[name_A][2:], received[name_A][2:] / 4)
        np.testing.assert_allclose(result[name_B][:, 2:], received[name_B][:, 2:] / 4)
    assert "biased" in ZERO_PADDING.label


@given(st.integers(1, 4), seeds)
@settings(max_examples=20)
def test_first_and_other_rows_are_the_whole_again(rank: int, seed: int) -> None:
    adapter = random_adapter(SPEC, seed)
    rest = other_rows(adapter, rank)
    assert (rest == {}) == (rank == 4)
    whole = with_side_car(first_rows(adapter, rank), rest)
    assert all(np.array_equal(whole[name], adapter[name]) for name in adapter)
    assert not any(np.shares_memory(first_rows(adapter, rank)[name], adapter[name]) for name in adapter)


def test_a_delta_of_the_full_rank_passes_as_it_is() -> None:
    received, delta = random_adapter(SPEC, 0), random_delta(SPEC, 1)
    for rest in ("kept", "dropped"):
        same = full_delta(delta, received, rest)
        assert all(same.tensors[name] is delta.tensors[name] for name in SPEC.shapes)
