"""Fixed groups, what each needs, and the median of their means."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.secure_sum import BOUND, roster_of, small_encoding

from fedtune.federation.secure_groups import (
    beyond_bounds,
    drawn_groups,
    median_of_means,
    too_few_groups,
    whole_groups,
)


@given(sites=st.integers(3, 40), count=st.integers(2, 9), seed=st.integers(0, 99))
def test_drawn_groups_are_even_and_follow_from_the_seed(sites: int, count: int, seed: int) -> None:
    names = [f"site{number}" for number in range(sites)]
    groups = drawn_groups(names, count, seed)
    sizes = Counter(groups.values())
    assert set(groups) == set(names)
    assert len(sizes) == min(count, sites)
    assert max(sizes.values()) - min(sizes.values()) <= 1
    assert groups == drawn_groups(names[::-1], count, seed)


def test_another_seed_draws_other_groups_and_one_group_is_none() -> None:
    names = [f"site{number}" for number in range(12)]
    assert drawn_groups(names, 3, 0) != drawn_groups(names, 3, 1)
    assert set(drawn_groups(names, 1, 0).values()) == {""}


def test_a_group_below_k_min_or_with_a_site_away_takes_no_part() -> None:
    roster, identities = roster_of(9, groups=("a", "a", "b", "b", "b", "c", "c", "c", ""))
    keys = [identity.public for identity in identities]
    whole, broken = whole_groups(roster, frozenset(keys) - {keys[6]}, k_min=3)
    assert whole == {"b": frozenset(keys[2:5])}
    assert broken["a"].problems[0].what == "group a has 2 sites, and no sum is over fewer than 3"
    assert broken["c"].problems[0].what == "2 of 3 sites of group c are there, and it takes part whole"
    assert {error.problems[0].code for error in broken.values()} == {"FT908"}


@given(
    means=st.lists(st.lists(st.floats(-1, 1), min_size=3, max_size=3), min_size=1, max_size=7),
    lies=st.lists(st.floats(-1e9, 1e9), min_size=3, max_size=3),
)
def test_the_median_lies_among_honest_means_while_they_are_the_majority(
    means: list[list[float]], lies: list[float]
) -> None:
    false = [{"x": np.array(lies)}] * (len(means) - 1)
    honest = [{"x": np.array(values)} for values in means]
    found = median_of_means([*false, *honest])["x"]
    rows = np.array(means)
    assert np.all((rows.min(axis=0) <= found) & (found <= rows.max(axis=0)))
    by_hand = [
        sorted(column)[len(column) // 2] for column in zip(*[*[lies] * len(false), *means], strict=True)
    ]
    assert found.tolist() == by_hand  # an odd number of groups: the middle one


def test_of_one_group_it_is_the_mean_itself() -> None:
    mean = {"x": np.array([0.1, 0.2])}
    assert median_of_means([mean]) is mean


def test_a_mean_that_no_clipped_updates_give_is_named() -> None:
    encoding = small_encoding(4)
    mean = {tensor.name: np.full(tensor.shape, BOUND) for tensor in encoding.tensors}
    assert beyond_bounds(mean, encoding) is None
    mean["a"][0, 0] = -1.01 * BOUND
    found = beyond_bounds(mean, encoding)
    assert found is not None
    assert found.problems[0].code == "FT921"
    assert found.problems[0].what.startswith("a moves by 0.0101, at most 0.01 can come of clipped updates")
    mean["a"][0, 0] = np.nan
    assert beyond_bounds(mean, encoding) is not None


@pytest.mark.parametrize(
    ("opened", "sites", "enough"), [(3, 9, True), (2, 6, True), (2, 5, False), (1, 9, False)]
)
def test_more_than_half_of_the_groups_and_the_quorum(opened: int, sites: int, enough: bool) -> None:
    found = too_few_groups(opened=opened, groups=3, sites=sites, quorum=6)
    assert (found is None) == enough
    assert found is None or found.problems[0].code == "FT920"
