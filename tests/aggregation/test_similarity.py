"""Changes of products are compared as if the products were there, and by what sets a site apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.adapters import random_adapter, small_spec

from fedtune.aggregation.clustering import grouped
from fedtune.aggregation.similarity import cosines, deviation_cosines, product_gram
from fedtune.models.adapter import Factor

SPEC = small_spec(((5, 7), (3, 4)), rank=2)
FACTORS: tuple[tuple[Factor, ...], ...] = (("A",), ("B",), ("A", "B"))


def dense(adapter: dict[str, np.ndarray]) -> np.ndarray:
    """All products of an adapter, end to end, written out."""
    wide = {name: tensor.astype(np.float64) for name, tensor in adapter.items()}
    return np.concatenate([(wide[B] @ wide[A]).ravel() for A, B in SPEC.pairs])


@given(st.integers(0, 2**32), st.lists(st.sampled_from(FACTORS), min_size=1, max_size=5))
def test_inner_products_are_those_of_the_dense_changes(seed: int, trained: list[tuple[Factor, ...]]) -> None:
    received = random_adapter(SPEC, seed)
    changes = [
        {name: tensor for name, tensor in random_adapter(SPEC, seed + 1 + number).items()
         if name in SPEC.names(factors)}
        for number, factors in enumerate(trained)
    ]  # fmt: skip
    after = [
        {name: value.astype(np.float64) + change.get(name, 0.0) for name, value in received.items()}
        for change in changes
    ]
    wanted = np.array([dense(each) - dense(received) for each in after])
    found = product_gram(received, changes, SPEC.pairs)
    np.testing.assert_allclose(found, wanted @ wanted.T, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(found, found.T)


@given(st.integers(0, 2**32), st.integers(2, 8))
def test_deviations_are_unit_vectors_less_their_mean(seed: int, count: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 6))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    apart = unit - unit.mean(axis=0)
    lengths = np.linalg.norm(apart, axis=1)
    found = deviation_cosines(vectors @ vectors.T)
    np.testing.assert_allclose(found, apart @ apart.T / np.outer(lengths, lengths), atol=1e-7)


@given(st.integers(0, 2**32), st.lists(st.floats(1e-3, 1e3), min_size=5, max_size=5))
def test_lengths_of_updates_do_not_matter(seed: int, lengths: list[float]) -> None:
    vectors = np.random.default_rng(seed).normal(size=(5, 9))
    longer = vectors * np.array(lengths)[:, None]
    np.testing.assert_allclose(
        deviation_cosines(vectors @ vectors.T), deviation_cosines(longer @ longer.T), atol=1e-6
    )


def test_equal_updates_and_empty_ones_have_no_direction_and_no_error() -> None:
    equal = np.ones((3, 4))
    np.testing.assert_array_equal(deviation_cosines(equal @ equal.T), np.ones((3, 3)))
    empty = np.zeros((2, 2))
    np.testing.assert_array_equal(cosines(empty), empty)
    np.testing.assert_array_equal(deviation_cosines(empty), np.ones((2, 2)))


@pytest.mark.parametrize("sites", [4, 12, 50])
def test_groups_that_plain_cosines_miss_are_found_behind_a_large_common_part(sites: int) -> None:
    """Updates as early in training: five parts in common, one of the group, one or more of noise."""
    exact = {"plain": 0, "apart": 0}
    for seed in range(20):
        draw = np.random.default_rng(seed)
        common, *directions = draw.normal(size=(3, 2_000))
        group = np.arange(sites) % 2
        noise = np.exp(0.5 * draw.normal(size=(sites, 1))) * draw.normal(size=(sites, 2_000))
        updates = 5 * common + np.array(directions)[group] + noise
        wanted = (tuple(range(0, sites, 2)), tuple(range(1, sites, 2)))
        gram = updates @ updates.T
        for way, similar in (("plain", cosines(gram)), ("apart", deviation_cosines(gram))):
            exact[way] += grouped(1.0 - similar, 2).groups == wanted
    assert exact["apart"] > max(12, exact["plain"])
