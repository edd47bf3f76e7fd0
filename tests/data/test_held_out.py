from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.datasets import data_config

from fedtune.data.partition import split_held_out


@given(
    n_rows=st.integers(min_value=0, max_value=400),
    hundredths=st.integers(min_value=0, max_value=100),
    most=st.integers(min_value=0, max_value=50),
    validation=st.integers(min_value=0, max_value=50),
    site=st.text(max_size=8),
)
def test_training_held_out_and_validation_rows_are_disjoint_and_together_all(
    n_rows: int, hundredths: int, most: int, validation: int, site: str
) -> None:
    data = data_config(
        held_out_fraction=hundredths / 100, held_out_max_rows=most, validation_max_rows=validation
    )
    split = split_held_out(n_rows, data, seed=5, site=site)
    parts = [part.tolist() for part in (split.train, split.held_out, split.validation)]
    assert sorted(row for part in parts for row in part) == list(range(n_rows))
    assert parts == [sorted(part) for part in parts]
    held_out = min(most, n_rows * hundredths // 100)
    assert len(split.held_out) == held_out
    assert len(split.validation) == min(held_out, validation, n_rows - held_out)


def test_validation_rows_come_from_training_and_leave_the_held_out_rows_as_they_were() -> None:
    without = split_held_out(200, data_config(held_out_fraction=0.2), seed=0, site="a")
    with_some = split_held_out(
        200, data_config(held_out_fraction=0.2, validation_max_rows=10), seed=0, site="a"
    )
    assert np.array_equal(without.held_out, with_some.held_out)
    assert set(with_some.validation) <= set(without.train)


def test_with_a_seed_of_their_own_the_held_out_rows_are_the_same_in_runs_of_other_seeds() -> None:
    data = data_config(held_out_fraction=0.2, held_out_seed=7)
    first, second = (split_held_out(200, data, seed=seed, site="a") for seed in (0, 1))
    assert np.array_equal(first.held_out, second.held_out)
    plain = split_held_out(200, data_config(held_out_fraction=0.2), seed=7, site="a")
    assert np.array_equal(first.held_out, plain.held_out)


@pytest.mark.parametrize("fraction", [0.29, 0.57, 0.58, 1e-05, 0.07])
def test_a_fraction_means_what_was_written(fraction: float) -> None:
    split = split_held_out(
        100_000, data_config(held_out_fraction=fraction, held_out_max_rows=10**6), seed=0, site="s"
    )
    assert len(split.held_out) == int(Decimal(str(fraction)) * 100_000)


def test_seed_and_site_decide_the_draw_and_nothing_else_does() -> None:
    data = data_config(held_out_fraction=0.2)
    draws = [
        split_held_out(200, data, seed=seed, site=site).held_out
        for seed, site in ((0, "a"), (0, "a"), (0, "b"), (1, "a"))
    ]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert not np.array_equal(draws[0], draws[3])


def test_a_site_with_one_row_trains_on_it() -> None:
    split = split_held_out(1, data_config(held_out_fraction=0.5), seed=0, site="small")
    assert (split.train.tolist(), split.held_out.tolist()) == ([0], [])
