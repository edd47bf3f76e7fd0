"""The best B for the mean A, against dense least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec
from support.rounds import aggregate, dense_mean, product, trained

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.linear import FEDAVG, FFA
from fedtune.aggregation.projection import PROJECTION, in_rows_of
from fedtune.models.adapter import AdapterSpec

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


@given(specs, weights, seeds)
@settings(max_examples=80)
def test_it_is_the_least_squares_fit_beside_the_mean_of_A_and_never_worse_than_fedavg(
    spec: AdapterSpec, shares: list[float], seed: int
) -> None:
    received = random_adapter(spec, seed)
    deltas = [random_delta(spec, seed + i) for i in range(1, len(shares) + 1)]
    result = aggregate(PROJECTION, received, deltas, shares)
    averaged = aggregate(FEDAVG, received, deltas, shares)
    for mean, (name_A, name_B) in zip(dense_mean(spec, received, deltas, shares), spec.pairs, strict=True):
        np.testing.assert_allclose(result[name_A], averaged[name_A], atol=1e-12 * np.linalg.norm(mean) + 1e-9)
        best = np.linalg.lstsq(result[name_A].T, mean.T, rcond=None)[0].T
        ours = np.linalg.norm(mean - result[name_B] @ result[name_A])
        theirs = np.linalg.norm(mean - averaged[name_B] @ averaged[name_A])
        least = np.linalg.norm(mean - best @ result[name_A])
        assert ours == pytest.approx(least, abs=1e-8 * np.linalg.norm(mean))
        assert ours <= theirs + 1e-8 * np.linalg.norm(mean)


@given(specs, weights, seeds)
@settings(max_examples=30)
def test_the_sum_of_the_sites_second_phases_is_what_the_server_computes(
    spec: AdapterSpec, shares: list[float], seed: int
) -> None:
    received = random_adapter(spec, seed)
    deltas = [random_delta(spec, seed + i) for i in range(1, len(shares) + 1)]
    result = aggregate(PROJECTION, received, deltas, shares)
    clients = [trained(received, delta) for delta in deltas]
    for name_A, name_B in spec.pairs:
        inverse = np.linalg.pinv(result[name_A])
        terms = [in_rows_of(inverse, client[name_B], client[name_A]) for client in clients]
        total = np.average(terms, axis=0, weights=shares)
        np.testing.assert_allclose(result[name_B], total, atol=1e-9 * (1 + np.abs(total).max()))


def test_where_A_is_the_same_everywhere_it_is_exact() -> None:
    received = random_adapter(SPEC, 0)
    deltas = [random_delta(SPEC, i, factors=("B",)) for i in (1, 2, 3)]
    result = aggregate(PROJECTION, received, deltas, [1.0, 2.0, 3.0])
    exact = aggregate(FFA, received, deltas, [1.0, 2.0, 3.0])
    for pair in SPEC.pairs:
        np.testing.assert_allclose(product(result, pair), product(exact, pair), rtol=1e-4, atol=1e-5)


def test_an_A_that_lost_its_rank_still_has_a_best_B() -> None:
    received = random_adapter(SPEC, 0)
    for name in SPEC.names(("A",)):
        received[name][1] = received[name][0]
    deltas = [random_delta(SPEC, i, factors=("B",)) for i in (1, 2)]
    result = aggregate(PROJECTION, received, deltas, [1.0, 1.0])
    for mean, pair in zip(dense_mean(SPEC, received, deltas, [1.0, 1.0]), SPEC.pairs, strict=True):
        np.testing.assert_allclose(product(result, pair), mean, rtol=1e-4, atol=1e-5)


def test_it_is_an_aggregator() -> None:
    assert isinstance(PROJECTION, Aggregator)
    assert isinstance(PROJECTION.start({}), Accumulator)
    assert PROJECTION.factors(1) == ("A", "B")
    with pytest.raises(ValueError, match="round=0"):
        PROJECTION.factors(0)
