"""How rows are laid out as microbatches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import random_rows

from fedtune.data.tokenize import TokenizedExample
from fedtune.training.batches import lay_out, pack, pad

SHAPES = st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), min_size=1, max_size=14).filter(
    lambda shapes: all(prompt + response > 1 for prompt, response in shapes)
)
PREFIX = st.lists(st.integers(0, 3), max_size=6).map(tuple)
LAYOUT = st.sampled_from([(False, False), (True, False), (True, True)])


def predictions(rows, microbatch):
    """For each target: the row it is of, what its place can see in order, and the token to predict."""
    visible = microbatch.visible()
    width = microbatch.token_ids.shape[1]
    found = []
    for place, target in zip(microbatch.target_places, microbatch.target_ids, strict=True):
        line, column = divmod(place, width)
        if visible is not None:
            seen = np.flatnonzero(visible[column])
        else:
            seen = np.arange(column + 1)
            if microbatch.attention_mask is not None:
                assert microbatch.attention_mask[line, : column + 1].all()
        positions = microbatch.position_ids[line, seen]
        np.testing.assert_array_equal(positions, np.arange(len(seen)))
        found.append((tuple(microbatch.token_ids[line, seen]), int(target)))
    return found


def expected(row):
    places = np.flatnonzero(row.loss_mask)
    return [(tuple(row.token_ids[:place]), int(row.token_ids[place])) for place in places]


@given(shapes=SHAPES, prefix=PREFIX, budget=st.integers(1, 60), layout=LAYOUT, seed=st.integers(0, 99))
@settings(max_examples=400, deadline=None)
def test_every_target_is_predicted_once_from_exactly_the_tokens_before_it(
    shapes, prefix, budget, layout, seed
):
    rows = random_rows(seed, shapes, prefix)
    packing, share = layout
    batches = lay_out(rows, microbatch_tokens=budget, packing=packing, share_prefix=share)
    found = [prediction for batch in batches for prediction in predictions(rows, batch)]
    wanted = [prediction for row in rows for prediction in expected(row)]
    assert sorted(found) == sorted(wanted)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(rows)))


@given(shapes=SHAPES, prefix=PREFIX, budget=st.integers(1, 60), layout=LAYOUT)
@settings(max_examples=300, deadline=None)
def test_no_microbatch_exceeds_its_budget_unless_it_is_one_row(shapes, prefix, budget, layout):
    rows = random_rows(0, shapes, prefix)
    packing, share = layout
    for batch in lay_out(rows, microbatch_tokens=budget, packing=packing, share_prefix=share):
        assert batch.token_ids.size <= budget or len(batch.rows) == 1
        if packing:
            assert batch.attention_mask is None
            assert batch.tokens == batch.token_ids.size


@given(shapes=SHAPES, budget=st.integers(4, 60), layout=LAYOUT)
@settings(max_examples=50, deadline=None)
def test_the_same_rows_give_the_same_microbatches(shapes, budget, layout):
    packing, share = layout
    first, second = (
        lay_out(random_rows(1, shapes), microbatch_tokens=budget, packing=packing, share_prefix=share)
        for _ in range(2)
    )
    assert [batch.rows for batch in first] == [batch.rows for batch in second]


def test_first_fit_decreasing_fills_the_first_bin_with_room():
    rows = random_rows(0, [(3, 2), (6, 3), (1, 2), (4, 3)])  # inputs of 4, 8, 2 and 6 tokens
    batches = pack(rows, microbatch_tokens=10, share_prefix=False)
    assert [batch.rows for batch in batches] == [(1, 2), (3, 0)]


def test_tokens_that_all_rows_begin_with_are_computed_once():
    rows = random_rows(0, [(4, 3), (5, 2), (2, 6)], prefix=(7, 7, 7, 7, 7))
    assert all(len({int(row.token_ids[5]) for row in rows}) == 3 for _ in rows)
    apart = pack(rows, microbatch_tokens=100, share_prefix=False)
    shared = pack(rows, microbatch_tokens=100, share_prefix=True)
    assert sum(batch.tokens for batch in apart) - sum(batch.tokens for batch in shared) == 2 * 5


def test_identical_rows_are_computed_once_and_counted_for_each():
    rows = random_rows(3, [(4, 3)]) * 3
    (batch,) = pack(rows, microbatch_tokens=100, share_prefix=True)
    assert batch.tokens == 6
    assert len(batch.target_ids) == 9


def test_what_follows_the_last_target_is_not_computed():
    ids = np.arange(10, dtype=np.int32)
    mask = np.zeros(10, dtype=bool)
    mask[3:5] = True
    row = TokenizedExample(id="r", token_ids=ids, loss_mask=mask)
    for batches in (pack([row], microbatch_tokens=99, share_prefix=True), pad([row], microbatch_tokens=99)):
        np.testing.assert_array_equal(batches[0].token_ids, [[0, 1, 2, 3]])
        np.testing.assert_array_equal(batches[0].target_ids, [3, 4])


def test_padded_rows_of_like_length_stand_together():
    rows = random_rows(0, [(3, 2), (9, 3), (3, 3), (9, 2)])  # inputs of 4, 11, 5 and 10 tokens
    batches = pad(rows, microbatch_tokens=22)
    assert [batch.rows for batch in batches] == [(1, 3), (2, 0)]
    assert [batch.tokens for batch in batches] == [21, 9]
    assert batches[0].attention_mask.sum(axis=1).tolist() == [11, 10]


@pytest.mark.parametrize("packing", [True, False])
def test_rows_without_targets_are_in_no_microbatch(packing):
    row = TokenizedExample(
        id="r", token_ids=np.arange(4, dtype=np.int32), loss_mask=np.array([True, False, False, False])
    )
    assert lay_out([row], microbatch_tokens=9, packing=packing, share_prefix=True) == ()
