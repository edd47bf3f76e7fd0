"""The walk through a client's rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.errors import TrainingError
from fedtune.training.walk import _rows_from, examples_for_round

ROWS = st.integers(1, 60)
STEP = st.integers(1, 70)


def walk_over(rounds, *, n, count, seed=0, site="north"):
    """All steps of several rounds, each starting where the last one ended."""
    steps, cursor = [], 0
    for length in rounds:
        walk = examples_for_round(n, start=cursor, count_per_step=count, steps=length, seed=seed, site=site)
        assert walk.end == cursor + length
        assert len(walk.steps) == length
        steps += walk.steps
        cursor = walk.end
    return steps


@given(n=ROWS, count=STEP, rounds=st.lists(st.integers(0, 9), max_size=12), seed=st.integers(0, 2**64))
@settings(max_examples=300, deadline=None)
def test_nothing_repeats_before_all_rows_were_seen_over_any_sequence_of_rounds(n, count, rounds, seed):
    steps = walk_over(rounds, n=n, count=count, seed=seed)
    flat = np.concatenate(steps) if steps else np.empty(0, int)
    for begin in range(0, len(flat), n):
        epoch = flat[begin : begin + n]
        assert len(np.unique(epoch)) == len(epoch)
        assert epoch.min() >= 0
        assert epoch.max() < n


@given(n=ROWS, count=STEP, start=st.integers(0, 500), seed=st.integers(0, 2**64))
@settings(max_examples=300, deadline=None)
def test_a_step_never_holds_the_same_row_twice(n, count, start, seed):
    walk = examples_for_round(n, start=start, count_per_step=count, steps=5, seed=seed, site="s")
    for step in walk.steps:
        assert len(step) == min(count, n)
        assert len(np.unique(step)) == len(step)


@given(n=ROWS, count=STEP, cuts=st.lists(st.integers(0, 7), min_size=1, max_size=8))
@settings(max_examples=200, deadline=None)
def test_the_walk_does_not_depend_on_how_it_is_cut_into_rounds(n, count, cuts):
    whole = walk_over([sum(cuts)], n=n, count=count)
    np.testing.assert_array_equal(np.array(walk_over(cuts, n=n, count=count)), np.array(whole))


@given(n=st.integers(6, 80), size=st.integers(1, 20), epoch=st.integers(0, 40))
@settings(max_examples=150, deadline=None)
def test_starting_at_an_epoch_gives_what_the_whole_walk_gives_there(n, size, epoch):
    size = min(size, n)
    whole = _rows_from(n, size, 0, 5, "s")
    for _ in range(epoch * n):
        next(whole)
    part = _rows_from(n, size, epoch, 5, "s")
    assert [next(part) for _ in range(2 * n)] == [next(whole) for _ in range(2 * n)]


def test_one_row_is_taken_in_every_step():
    walk = examples_for_round(1, start=3, count_per_step=4, steps=2, seed=0, site="s")
    assert [step.tolist() for step in walk.steps] == [[0], [0]]


def test_no_rows_is_an_error_that_names_the_site():
    with pytest.raises(TrainingError, match=r"FT401: site 'Eye' has 0 rows") as caught:
        examples_for_round(0, start=0, count_per_step=4, steps=1, seed=0, site="Eye")
    assert "held_out_fraction" in caught.value.problems[0].fix


@pytest.mark.parametrize("bad", [{"start": -1}, {"steps": -1}, {"count_per_step": 0}])
def test_impossible_arguments_are_refused_with_their_value(bad):
    arguments = {"start": 0, "steps": 1, "count_per_step": 1} | bad
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name}={value}"):
        examples_for_round(5, seed=0, site="s", **arguments)


def test_sites_seeds_and_epochs_are_shuffled_differently():
    def first(seed, site, start=0):
        walk = examples_for_round(50, start=start, count_per_step=50, steps=1, seed=seed, site=site)
        return walk.steps[0].tolist()

    orders = [first(0, "a"), first(0, "b"), first(1, "a"), first(0, "a", start=1)]
    assert len({tuple(order) for order in orders}) == 4


def test_every_row_is_as_likely_as_another_to_come_first():
    counts = np.zeros(5)
    for seed in range(2000):
        walk = examples_for_round(5, start=0, count_per_step=1, steps=1, seed=seed, site="s")
        counts[walk.steps[0][0]] += 1
    chi_squared = (((counts - 400) ** 2) / 400).sum()
    assert chi_squared < 18.5  # 0.1 % point of the distribution with 4 degrees of freedom
