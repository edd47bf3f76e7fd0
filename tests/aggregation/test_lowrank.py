"""Stacked factors against the dense products that they stand for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.aggregation.lowrank import Matrix, singular_terms, stacked

sizes = st.integers(1, 9)
seeds = st.integers(0, 2**32)


def normal(seed: int, *shape: int) -> Matrix:
    return np.random.default_rng(seed).normal(size=shape)


@given(sizes, sizes, sizes, seeds)
def test_the_terms_are_the_singular_value_decomposition_of_the_product(
    fan_out: int, fan_in: int, inner: int, seed: int
) -> None:
    left, right = normal(seed, fan_out, inner), normal(seed + 1, inner, fan_in)
    terms = singular_terms(left, right)
    dense = np.linalg.svd(left @ right, compute_uv=False)
    count = min(fan_out, fan_in, inner)
    np.testing.assert_allclose(terms.singular, dense[:count], atol=1e-12 * dense[0])
    np.testing.assert_allclose(
        (terms.left * terms.singular) @ terms.right, left @ right, atol=1e-12 * dense[0]
    )
    np.testing.assert_allclose(terms.left.T @ terms.left, np.eye(count), atol=1e-12)
    np.testing.assert_allclose(terms.right @ terms.right.T, np.eye(count), atol=1e-12)


@given(sizes, sizes, sizes, sizes, seeds)
def test_balanced_factors_are_the_best_of_their_rank_and_of_equal_norm(
    fan_out: int, fan_in: int, inner: int, rank: int, seed: int
) -> None:
    left, right = normal(seed, fan_out, inner), normal(seed + 1, inner, fan_in)
    B, A = singular_terms(left, right).balanced(rank)
    assert (B.shape, A.shape) == ((fan_out, rank), (rank, fan_in))
    singular = np.linalg.svd(left @ right, compute_uv=False)
    least = np.sqrt(np.sum(singular[rank:] ** 2))
    assert np.linalg.norm(left @ right - B @ A) == pytest.approx(least, abs=1e-12 * singular[0])
    np.testing.assert_allclose(B.T @ B, A @ A.T, atol=1e-11 * singular[0])


@given(st.lists(st.tuples(st.integers(1, 4), st.floats(0.1, 10)), min_size=1, max_size=5), seeds)
def test_stacked_terms_of_any_ranks_multiply_to_their_weighted_sum(
    clients: list[tuple[int, float]], seed: int
) -> None:
    terms = [(c, normal(seed + i, 6, r), normal(seed + 50 + i, r, 5)) for i, (r, c) in enumerate(clients)]
    left, right = stacked(terms)
    dense = sum(c * B @ A for c, B, A in terms)
    np.testing.assert_allclose(left @ right, dense, atol=1e-11)


def test_signs_and_zero_are_settled() -> None:
    terms = singular_terms(normal(3, 7, 4), normal(4, 4, 6))
    assert all(column[np.abs(column).argmax()] > 0 for column in terms.left.T)
    nothing = singular_terms(np.zeros((3, 2)), np.ones((2, 4)))
    assert nothing.rank == 0
    assert not np.any(nothing.balanced(2)[1])


def test_directions_that_cancel_do_not_count() -> None:
    B, A = normal(1, 8, 2), normal(2, 2, 9)
    assert singular_terms(*stacked([(1.0, B, A), (1.0, B, A)])).rank == 2
    assert singular_terms(*stacked([(1.0, B, A), (0.5, normal(3, 8, 1), normal(4, 1, 9))])).rank == 3


def test_factors_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"do not fit: \(3, 2\) and \(4, 3\)"):
        singular_terms(np.ones((3, 2)), np.ones((4, 3)))


def test_the_dense_product_is_never_formed() -> None:
    left, right = normal(1, 4096, 40), normal(2, 40, 4096)
    tracemalloc.start()
    try:
        singular_terms(left, right).balanced(4)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4096 * 4096 * 8 / 8
