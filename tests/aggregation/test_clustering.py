"""Average linkage against its definition, written out over sets of sets."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.aggregation.clustering import grouped


def by_definition(distances: np.ndarray, number: int) -> tuple[set[frozenset[int]], list[float]]:
    """Merge the two groups with the least mean distance over all pairs of members; every mean anew."""
    groups = {frozenset([item]) for item in range(len(distances))}
    kept, merges = set(groups), []
    while len(groups) > 1:
        mean, pair = min(
            (float(np.mean([distances[i, j] for i in a for j in b])), (a, b))
            for a, b in itertools.combinations(sorted(groups, key=min), 2)
        )  # fmt: skip
        merges.insert(0, mean)
        groups = (groups - set(pair)) | {pair[0] | pair[1]}
        kept = set(groups) if len(groups) == number else kept
    return kept, merges


def distances(seed: int, count: int) -> np.ndarray:
    draw = np.random.default_rng(seed).uniform(size=(count, count))
    return np.triu(draw, 1) + np.triu(draw, 1).T


@given(st.integers(0, 2**32), st.integers(1, 9), st.data())
def test_groups_and_distances_are_those_of_the_definition(seed: int, count: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, count))
    found = grouped(distances(seed, count), number)
    groups, merges = by_definition(distances(seed, count), number)
    assert {frozenset(group) for group in found.groups} == groups
    np.testing.assert_allclose(found.merge_distances, merges)
    assert len(found.groups) == number
    assert sorted(itertools.chain(*found.groups)) == list(range(count))
    assert [group[0] for group in found.groups] == sorted(group[0] for group in found.groups)
    assert all(first >= second for first, second in itertools.pairwise(found.merge_distances))


@given(st.integers(0, 2**32), st.permutations(range(7)), st.integers(1, 7))
def test_the_order_of_the_items_changes_nothing(seed: int, order: list[int], number: int) -> None:
    given_ = distances(seed, 7)
    turned = grouped(given_[np.ix_(order, order)], number)
    back = {frozenset(order[place] for place in group) for group in turned.groups}
    assert back == {frozenset(group) for group in grouped(given_, number).groups}


def test_of_equal_distances_the_first_are_merged() -> None:
    assert grouped(np.ones((4, 4)), 2).groups == ((0, 1, 2), (3,))


@pytest.mark.parametrize("number", [0, 4])
def test_a_number_that_cannot_be_is_an_error(number: int) -> None:
    with pytest.raises(ValueError, match=f"3 items cannot be {number} groups"):
        grouped(np.ones((3, 3)), number)
