"""The best B for the mean A, against dense least squares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec
from support.rounds import aggregate, dense_mean, product, trained

from fedtune.aggregation.base import Accumulator, Aggregator
from fedtune.aggregation.linear import FEDAVG, FFA
from fedtune.aggregation.projection import (
    GREATEST_CONDITION,
    PROJECTION,
    PROJECTION_IN_ROUNDS,
    fitted_B,
    ill_conditioned,
    in_rows_of,
)
from fedtune.models.adapter import AdapterSpec
from fedtune.secagg.encoding import Encoding, greatest_levels
from fedtune.secagg.layout import tensor_bounds
from fedtune.secagg.rounding import decode_mean, encode_update

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


@given(
    st.lists(st.integers(1, 4), min_size=3, max_size=5),
    st.integers(3, 8),
    st.integers(1, 3),
    seeds,
)
@settings(max_examples=30)
def test_two_secure_rounds_give_the_plain_result_within_what_the_encoder_may_round(
    powers: list[int], size: int, rank: int, seed: int
) -> None:
    """Against the plain method, and in its bound for what an error of the mean A does to the fit."""
    spec = small_spec(((5, size), (3, size + 2)), rank=min(rank, size), dtype="float64")
    received = random_adapter(spec, seed)
    deltas = [random_delta(spec, seed + i, scale=0.1) for i in range(1, len(powers) + 1)]
    weights = [2**power for power in powers]
    plain = aggregate(PROJECTION, received, deltas, weights)
    assume(not ill_conditioned(plain))
    clients = [trained(received, delta) for delta in deltas]

    def secure_mean(
        updates: list[dict[str, np.ndarray]], bound: float
    ) -> tuple[dict[str, np.ndarray], float]:
        """Sum of real encodings in the ring, decoded; and the most by which an entry is off."""
        encoding = Encoding(
            tensors=tensor_bounds(
                {name: value.shape for name, value in updates[0].items()}, bound, vocabulary=0
            ),
            levels=greatest_levels(32, len(updates)),
            max_cohort=len(updates),
            max_weight=max(weights),
        )
        encoded = [encode_update(each, encoding, weight=w) for each, w in zip(updates, weights, strict=True)]
        vector = np.sum([each.vector for each in encoded], axis=0, dtype=np.uint32)
        lanes = np.sum([each.lanes for each in encoded], axis=0, dtype=np.uint64)
        off = encoding.error_bound(encoding.tensors[0], count=len(updates), total_weight=sum(weights))
        return dict(decode_mean(vector, lanes, encoding).tensors), off

    changes = [{name: each.tensors[name] for name in spec.names(("A",))} for each in deltas]
    mean, off_A = secure_mean(changes, 1.0)
    between = received | {name: received[name] + change for name, change in mean.items()}
    fits = [dict(fitted_B(client, between).tensors) for client in clients]
    bound = 1.01 * max(np.abs(value).max() for each in fits for value in each.values()) + 1e-9
    step, off_B = secure_mean(fits, bound)
    for (name_A, name_B), M in zip(spec.pairs, dense_mean(spec, received, deltas, weights), strict=True):
        np.testing.assert_allclose(between[name_A], plain[name_A], rtol=0, atol=off_A + 1e-12)
        # ||P^+ - Q^+|| <= phi ||P^+|| ||Q^+|| ||P - Q||, phi < 1.62 (Wedin 1973, theorem 4.1)
        inverse = np.linalg.norm(np.linalg.pinv(plain[name_A]), 2)
        error_A = np.linalg.norm(between[name_A] - plain[name_A], 2)
        moved = 1.62 * 1.01 * inverse**2 * error_A * np.linalg.norm(M, 2)
        got = received[name_B] + step[name_B]
        np.testing.assert_allclose(got, plain[name_B], rtol=0, atol=off_B + moved + 1e-9)


def test_an_A_is_ill_conditioned_where_its_singular_values_are_too_far_apart() -> None:
    adapter = random_adapter(SPEC, 0)
    (first, _), (second, _) = SPEC.pairs
    stream = np.random.default_rng(1)
    left, right = (np.linalg.qr(stream.normal(size=(n, n)))[0] for n in (3, 9))

    def with_ratio(ratio: float) -> np.ndarray:
        return (left * np.array([1.0, 0.5, 1 / ratio])) @ right[:3]

    assert ill_conditioned(adapter) == {}
    adapter[first] = with_ratio(0.99 * GREATEST_CONDITION)
    assert ill_conditioned(adapter) == {}
    adapter[first] = with_ratio(1.01 * GREATEST_CONDITION)
    assert ill_conditioned(adapter) == {first: pytest.approx(1.01 * GREATEST_CONDITION, rel=1e-3)}
    adapter[second] = np.zeros_like(adapter[second])
    assert ill_conditioned(adapter)[second] == float("inf")


def test_in_two_rounds_it_sends_one_factor_at_a_time() -> None:
    assert isinstance(PROJECTION_IN_ROUNDS, Aggregator)
    assert [PROJECTION_IN_ROUNDS.factors(number) for number in (1, 2, 3)] == [("A",), ("B",), ("A",)]
    assert (PROJECTION_IN_ROUNDS.name, PROJECTION_IN_ROUNDS.exact) == (PROJECTION.name, PROJECTION.exact)
