"""Robust means against their papers' definitions, written out in loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.adapters import random_adapter, random_delta, small_spec

from fedtune.aggregation.linear import FEDAVG
from fedtune.aggregation.robust import RobustMean, bulyan, cosine_filter, krum_order, norm_bounded
from fedtune.aggregation.steered import SteeredAggregator
from fedtune.config.methods import least_updates
from fedtune.config.schema import DefenceConfig, ServerOptimizerConfig
from fedtune.errors import UpdateError
from fedtune.models.adapter import Adapter
from fedtune.training.delta import Delta

SPEC = small_spec(((3, 4),), rank=2, dtype="float64")
NAMES = ("median", "trimmed_mean", "krum", "multi_krum", "bulyan", "norm_bound", "cosine")
ADD = ServerOptimizerConfig(
    name="none", learning_rate=1.0, momentum=0.0, second_momentum=0.0, adaptivity=0.001
)
seeds = st.integers(0, 2**32)


def defence(name: Any, byzantine: int = 1) -> DefenceConfig:
    return DefenceConfig(name=name, byzantine=byzantine, norm_bound=None, min_cosine=0.0)


def mean_of(name: str, deltas: list[Delta], byzantine: int = 1, weights: list[float] | None = None) -> Any:
    mean = RobustMean(random_adapter(SPEC, 0), defence(name, byzantine))
    for i, delta in enumerate(deltas):
        mean.add(delta, weights[i] if weights else 1.0)
    return flat(mean.mean_delta())


def flat(tensors: Any) -> Any:
    return np.concatenate([np.ravel(tensors[name]) for name in sorted(tensors)])


def rows_of(deltas: list[Delta]) -> Any:
    return np.stack([flat(delta.tensors) for delta in deltas])


def score(rows: Any, i: int, chosen: list[int], false: int) -> tuple[float, float]:
    """Krum's score of row i among the chosen ones, by its definition, and what settles a tie."""
    distances = sorted(
        sum((float(a) - float(b)) ** 2 for a, b in zip(rows[i], rows[j], strict=True))
        for j in chosen
        if j != i
    )
    return sum(distances[: max(1, len(chosen) - false - 2)]), sum(distances)


@given(st.integers(1, 2), st.integers(0, 3), seeds)
@settings(max_examples=40)
def test_krum_and_multi_krum_choose_by_the_papers_score(false: int, more: int, seed: int) -> None:
    count = 2 * false + 3 + more
    deltas = [random_delta(SPEC, seed + i) for i in range(count)]
    rows, everyone = rows_of(deltas), list(range(count))
    scores = [score(rows, i, everyone, false) for i in everyone]
    order = sorted(everyone, key=lambda i: scores[i])
    assert krum_order(rows, false) == order
    np.testing.assert_array_equal(mean_of("krum", deltas, false), rows[order[0]])
    best = [rows[i] for i in order[: count - false]]
    np.testing.assert_allclose(mean_of("multi_krum", deltas, false), np.mean(best, axis=0), rtol=1e-12)


@given(st.integers(0, 2), st.integers(0, 2), seeds)
@settings(max_examples=30)
def test_bulyan_is_krum_again_and_again_and_then_the_values_nearest_to_the_median(
    false: int, more: int, seed: int
) -> None:
    count = 4 * false + 3 + more
    rows = rows_of([random_delta(SPEC, seed + i) for i in range(count)])
    remaining, chosen = list(range(count)), []
    for _ in range(count - 2 * false):
        best = min(remaining, key=lambda i: score(rows, i, remaining, false))
        chosen.append(best)
        remaining.remove(best)
    picked, expected = rows[chosen], []
    for column in picked.T:
        nearest = sorted(column, key=lambda value: abs(value - np.median(column)))
        expected.append(np.mean(nearest[: len(chosen) - 2 * false]))
    np.testing.assert_allclose(bulyan(rows, false), expected, rtol=1e-9)


@given(st.integers(0, 3), st.integers(0, 4), seeds)
@settings(max_examples=40)
def test_the_trimmed_mean_leaves_out_exactly_f_on_each_side(false: int, more: int, seed: int) -> None:
    count = 2 * false + 1 + more
    deltas = [random_delta(SPEC, seed + i) for i in range(count)]
    expected = [np.mean(sorted(column)[false : count - false]) for column in rows_of(deltas).T]
    np.testing.assert_allclose(mean_of("trimmed_mean", deltas, false), expected, rtol=1e-9, atol=1e-12)


@given(st.integers(1, 7), seeds)
def test_the_median_is_that_of_each_entry(count: int, seed: int) -> None:
    deltas = [random_delta(SPEC, seed + i) for i in range(count)]
    for got, column in zip(mean_of("median", deltas), rows_of(deltas).T, strict=True):
        ordered = sorted(column)
        assert got == (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


@given(st.integers(1, 6), seeds, st.floats(0.1, 5))
def test_a_bounded_norm_is_never_longer_and_short_ones_count_as_they_are(
    count: int, seed: int, bound: float
) -> None:
    rows = rows_of([random_delta(SPEC, seed + i) for i in range(count)])
    shares = [1 / count] * count
    mean = norm_bounded(rows, shares, bound)
    expected = sum(
        share * (row if np.linalg.norm(row) <= bound else row * bound / np.linalg.norm(row))
        for share, row in zip(shares, rows, strict=True)
    )
    np.testing.assert_allclose(mean, expected, atol=1e-12)
    assert np.linalg.norm(mean) <= bound * (1 + 1e-12)
    np.testing.assert_allclose(norm_bounded(rows, shares, 1e9), rows.mean(axis=0), atol=1e-12)


def test_the_cosine_filter_leaves_out_what_points_the_other_way() -> None:
    rows = np.array([[1.0, 0.1], [0.9, -0.1], [1.1, 0.0], [-5.0, 0.0]])
    kept = cosine_filter(rows, [0.2, 0.2, 0.2, 0.4], 0.0)
    np.testing.assert_allclose(kept, rows[:3].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(cosine_filter(rows, [0.0, 0.0, 0.0, 1.0], 0.0), np.median(rows, axis=0))
    np.testing.assert_array_equal(cosine_filter(np.zeros((3, 2)), [1 / 3] * 3, 0.0), np.zeros(2))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("attack", ["flipped", "huge", "noise"])
def test_one_false_update_among_seven_does_not_turn_the_mean(name: str, attack: str) -> None:
    truth = random_delta(SPEC, 99)
    honest = [
        Delta(
            tensors={
                key: value + 0.1 * np.random.default_rng(i).normal(size=value.shape)
                for key, value in truth.tensors.items()
            }
        )
        for i in range(6)
    ]
    factor = {"flipped": -20.0, "huge": 1e6, "noise": 0.0}[attack]
    noise = np.random.default_rng(7)
    false = Delta(
        tensors={
            key: factor * value + (50.0 * noise.normal(size=value.shape) if attack == "noise" else 0.0)
            for key, value in truth.tensors.items()
        }
    )
    mean = mean_of(name, [*honest, false])
    target = flat(truth.tensors)
    limit = (
        0.5 if name != "cosine" or attack == "flipped" else np.inf
    )  # a filter by angle does not bound lengths
    assert np.linalg.norm(mean - target) <= limit * np.linalg.norm(target)
    plain = rows_of([*honest, false]).mean(axis=0)
    assert np.linalg.norm(plain - target) > np.linalg.norm(target), "the plain mean is lost"


@given(st.sampled_from(NAMES), seeds, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_the_order_of_clients_does_not_matter(name: str, seed: int, random: Any) -> None:
    deltas = [random_delta(SPEC, seed + i) for i in range(7)]
    first = mean_of(name, deltas)
    random.shuffle(deltas)
    np.testing.assert_allclose(mean_of(name, deltas), first, rtol=1e-9, atol=1e-12)


@given(st.sampled_from(NAMES), seeds, st.integers(7, 9))
@settings(max_examples=30)
def test_equal_clients_give_that_client(name: str, seed: int, count: int) -> None:
    delta = random_delta(SPEC, seed)
    assume(np.any(flat(delta.tensors)))
    np.testing.assert_allclose(mean_of(name, [delta] * count), flat(delta.tensors), rtol=1e-12)


def test_near_deltas_are_told_apart_where_flowers_distances_cancel() -> None:
    base = np.full(1000, 100.0)
    rows = np.stack([base + 1e-6 * np.random.default_rng(i).normal(size=1000) for i in range(5)])
    rows[4] += 1e-4
    assert krum_order(rows, 1)[-1] == 4


@pytest.mark.parametrize(
    ("name", "needed"), [("krum", 5), ("multi_krum", 5), ("bulyan", 7), ("trimmed_mean", 3)]
)
def test_too_few_updates_are_refused(name: str, needed: int) -> None:
    assert least_updates(name, 1) == needed
    deltas = [random_delta(SPEC, i) for i in range(needed - 1)]
    with pytest.raises(
        UpdateError, match=f"FT510: {name} with defence.byzantine=1 needs {needed} updates, {needed - 1}"
    ):
        mean_of(name, deltas)


def test_a_robust_round_moves_the_trained_factors_alone() -> None:
    received: Adapter = random_adapter(SPEC, 0)
    method = SteeredAggregator(method=FEDAVG, defence=defence("median"), optimizer=ADD)
    accumulator = method.start(received)
    deltas = [random_delta(SPEC, i, factors=("B",)) for i in range(1, 4)]
    for delta in deltas:
        accumulator.add(delta, 1.0)
    result = accumulator.result()
    for name_A, name_B in SPEC.pairs:
        assert result[name_A].tobytes() == received[name_A].tobytes()
        middle = np.median([delta.tensors[name_B] for delta in deltas], axis=0)
        np.testing.assert_allclose(result[name_B], received[name_B] + middle)
    assert accumulator.carried() == {}
    assert not accumulator.exact


def test_what_does_not_belong_to_the_round_is_refused() -> None:
    mean = RobustMean(random_adapter(SPEC, 0), defence("median"))
    mean.add(random_delta(SPEC, 1), 1.0)
    with pytest.raises(UpdateError, match="FT507"):
        mean.add(random_delta(SPEC, 1, factors=("B",)), 1.0)
    with pytest.raises(UpdateError, match="FT506"):
        mean.add(random_delta(SPEC, 1), -1.0)
