"""The encoding: bounds, overflow, unbiased rounding, and the stated error of the decoded mean."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedtune.errors import SecureAggregationError
from fedtune.secagg.encoding import Encoding, MetricLane, greatest_levels
from fedtune.secagg.layout import tensor_bounds
from fedtune.secagg.rounding import decode_mean, encode_update

RINGS = [16, 32, 64]


def encoding(
    size: int = 6,
    *,
    ring_bits: int = 32,
    cohort: int = 5,
    max_weight: int = 1,
    bound: float = 0.5,
    **more: object,
) -> Encoding:
    return Encoding(
        tensors=tensor_bounds({"t": (size,)}, bound, vocabulary=49152),
        ring_bits=ring_bits,
        levels=more.pop("levels", greatest_levels(ring_bits, cohort)),
        max_cohort=cohort,
        max_weight=max_weight,
        **more,
    )


finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@settings(max_examples=60, deadline=None)
@given(
    ring_bits=st.sampled_from(RINGS),
    updates=st.lists(
        st.tuples(hnp.arrays(np.float32, 6, elements=finite), st.integers(1, 50)), min_size=1, max_size=7
    ),
    bound=st.floats(1e-4, 1e3),
)
def test_the_decoded_mean_is_within_the_stated_bound(ring_bits, updates, bound) -> None:
    rules = encoding(ring_bits=ring_bits, cohort=7, max_weight=50, bound=bound)
    vector = np.zeros(6, dtype=rules.dtype)
    lanes = np.zeros(2, dtype=np.uint64)
    exact = np.zeros(6)
    for values, weight in updates:
        encoded = encode_update({"t": values}, rules, weight=weight)
        vector += encoded.vector
        lanes += encoded.lanes
        exact += weight * np.clip(values.astype(np.float64), -bound, bound)
    total_weight = sum(weight for _, weight in updates)
    mean = decode_mean(vector, lanes, rules)
    assert (mean.count, mean.total_weight) == (len(updates), total_weight)
    allowed = rules.error_bound(rules.tensors[0], count=len(updates), total_weight=total_weight)
    difference = np.abs(mean.tensors["t"] - exact / total_weight)
    assert np.all(difference <= allowed + bound * 2.0**-50 + 1e-300)


@pytest.mark.parametrize("ring_bits", RINGS)
def test_a_full_cohort_at_the_bound_does_not_overflow(ring_bits: int) -> None:
    rules = encoding(2, ring_bits=ring_bits, cohort=9, bound=1.0)
    vector, lanes = np.zeros(2, dtype=rules.dtype), np.zeros(2, dtype=np.uint64)
    for _ in range(9):
        encoded = encode_update({"t": np.array([1e30, -1e30], np.float32)}, rules)
        vector += encoded.vector
        lanes += encoded.lanes
    assert decode_mean(vector, lanes, rules).tensors["t"].tolist() == [1.0, -1.0]


@pytest.mark.parametrize("ring_bits", RINGS)
def test_one_level_more_than_the_greatest_is_refused(ring_bits: int) -> None:
    if ring_bits == 64:  # there the limit is the precision of doubles
        with pytest.raises(SecureAggregationError, match="at most 2\\^40"):
            encoding(ring_bits=64, cohort=7, levels=2**40 + 1)
        return
    encoding(ring_bits=ring_bits, cohort=7, levels=greatest_levels(ring_bits, 7))
    with pytest.raises(SecureAggregationError, match="FT915"):
        encoding(ring_bits=ring_bits, cohort=7, levels=greatest_levels(ring_bits, 7) + 1)


def test_overflow_is_proven_for_the_cohort_before_a_round_starts() -> None:
    rules = encoding(ring_bits=16, cohort=10)
    rules.prove_no_overflow(10)
    with pytest.raises(SecureAggregationError, match="11 members x 3276 levels do not stay below 2\\^15"):
        rules.prove_no_overflow(11)


def test_a_ring_too_small_for_the_cohort_is_refused() -> None:
    with pytest.raises(SecureAggregationError, match="no level left for 40000 members"):
        greatest_levels(16, 40_000)


def test_rounding_is_unbiased_and_takes_both_neighbours() -> None:
    rules = encoding(200_000, ring_bits=16, cohort=5, bound=1.0)
    value = 0.3 / rules.levels
    encoded = encode_update({"t": np.full(200_000, value)}, rules)
    levels = encoded.vector.view(np.int16)
    assert set(np.unique(levels)) == {0, 1}
    assert abs(levels.mean() - 0.3) < 5 * math.sqrt(0.21 / 200_000)


def test_the_error_has_at_most_the_stated_deviation() -> None:
    rules = encoding(100_000, ring_bits=16, cohort=5, bound=1e-3, max_weight=8)
    rng = np.random.default_rng(1)
    vector, lanes = np.zeros(100_000, dtype=rules.dtype), np.zeros(2, dtype=np.uint64)
    exact = np.zeros(100_000)
    for weight in (1, 3, 8):
        values = rng.standard_normal(100_000) * 1e-4
        encoded = encode_update({"t": values}, rules, weight=weight)
        vector += encoded.vector
        lanes += encoded.lanes
        exact += weight * values / 12
    error = decode_mean(vector, lanes, rules).tensors["t"] - exact
    assert error.std() <= 1.02 * rules.error_deviation(rules.tensors[0], count=3, total_weight=12)


def test_equal_updates_are_rounded_differently_each_time() -> None:
    rules = encoding(1000, ring_bits=16)
    values = np.full(1000, 1e-5, dtype=np.float32)
    first, second = (encode_update({"t": values}, rules).vector for _ in range(2))
    assert not np.array_equal(first, second)


def test_the_runs_seed_has_no_part_in_the_rounding() -> None:
    rules = encoding(1000, ring_bits=16)
    values = np.full(1000, 1e-5, dtype=np.float32)
    drawn = []
    for _ in range(2):
        np.random.seed(0)
        drawn.append(encode_update({"t": values}, rules).vector)
    assert not np.array_equal(*drawn)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("at", [0, 19_999])
def test_a_value_that_is_not_finite_is_refused_by_name(bad: float, at: int) -> None:
    rules = encoding(20_000)
    values = np.zeros(20_000, dtype=np.float32)
    values[at] = bad
    with pytest.raises(SecureAggregationError, match="t holds a NaN or an infinity"):
        encode_update({"t": values}, rules)


def test_every_wrong_input_is_listed_at_once() -> None:
    rules = encoding(4, metrics=(MetricLane(name="loss", bound=10.0),))
    with pytest.raises(SecureAggregationError) as caught:
        encode_update({"t": np.zeros(5), "u": np.zeros(1)}, rules, weight=2, metrics={"lost": 1.0})
    text = str(caught.value)
    assert "u is not part of the encoding" in text
    assert "t has shape (5,) of float64, expected (4,) of floats" in text
    assert "weight is 1 … 1, got 2" in text
    assert "metrics are ['loss'], got ['lost']" in text


def test_metric_lanes_give_the_mean_to_their_resolution() -> None:
    rules = encoding(1, cohort=3, metrics=(MetricLane(name="loss", bound=10.0),))
    vector, lanes = np.zeros(1, dtype=rules.dtype), np.zeros(3, dtype=np.uint64)
    for loss in (2.5, -1.25, 100.0):  # the last is clipped to 10
        encoded = encode_update({"t": np.zeros(1)}, rules, metrics={"loss": loss})
        vector += encoded.vector
        lanes += encoded.lanes
    assert decode_mean(vector, lanes, rules).metrics["loss"] == pytest.approx(11.25 / 3, abs=1e-9)


def test_impossible_lanes_are_refused() -> None:
    rules = encoding(1)
    with pytest.raises(SecureAggregationError, match="FT924"):
        decode_mean(np.zeros(1, rules.dtype), np.array([0, 0], np.uint64), rules)
    with pytest.raises(SecureAggregationError, match="FT924"):
        decode_mean(np.zeros(1, rules.dtype), np.array([2, 7], np.uint64), rules)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.embed_tokens.lora_embedding_A", (8, 64)),
        ("lm_head.lora_B.weight", (64, 8)),
        ("layers.0.odd.lora_B.weight", (49152, 8)),
    ],
)
def test_token_indexed_tensors_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(SecureAggregationError, match="FT916"):
        tensor_bounds({name: shape, "layers.0.q_proj.lora_A.weight": (8, 64)}, 1.0, vocabulary=49152)


def test_a_missing_or_impossible_bound_is_refused_with_all_others() -> None:
    with pytest.raises(SecureAggregationError) as caught:
        tensor_bounds({"a": (2,), "b": (2,), "c": (0,)}, {"a": -1.0, "c": 1.0}, vocabulary=10)
    assert [item.where for item in caught.value.problems] == ["a", "b", "c"]


def test_the_hash_changes_with_every_rule() -> None:
    hashes = {
        encoding(6).hash,
        encoding(7).hash,
        encoding(6, bound=0.25).hash,
        encoding(6, cohort=6).hash,
        encoding(6, levels=1000).hash,
        encoding(6, ring_bits=64, levels=1000).hash,
        encoding(6, max_weight=2).hash,
        encoding(6, metrics=(MetricLane(name="loss", bound=1.0),)).hash,
        encoding(6, metrics=(MetricLane(name="loss", bound=2.0),)).hash,
    }
    assert len(hashes) == 9


def test_an_encoded_update_never_shows_its_numbers() -> None:
    encoded = encode_update({"t": np.full(6, 0.123, np.float32)}, encoding(6))
    assert repr(encoded) == "EncodedUpdate(6 parameters, 2 lanes)"
