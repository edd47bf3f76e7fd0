"""A site trains only on an adapter that clipped updates can have given."""

from __future__ import annotations

import numpy as np
import pytest

from fedtune.errors import SecureAggregationError
from fedtune.secagg.broadcast import check_later_adapter, check_start_adapter

START = {"A": np.ones((2, 3), np.float32), "B": np.zeros((3, 2), np.float32)}


def later(received, **more: object) -> None:
    options = {"bounds": {"B": 1e-2}, "excess": 0.0, "server_step": 1.0} | more
    check_later_adapter(received, START, **options)


def test_the_first_adapter_is_the_seeded_start_bit_for_bit() -> None:
    check_start_adapter(START, START)
    crafted = START | {"B": START["B"] + np.float32(1e-7)}
    with pytest.raises(SecureAggregationError, match="FT917: B is not the seeded start"):
        check_start_adapter(crafted, START)


def test_later_ones_move_by_at_most_bound_times_step() -> None:
    later(START | {"B": START["B"] + np.float32(1e-2)})
    later(START | {"B": START["B"] + np.float32(2e-2)}, server_step=2.0)
    later(START | {"B": START["B"] + np.float32(3e-2)}, rounds=3)
    with pytest.raises(SecureAggregationError, match=r"B moved by 0\.011, at most 0\.01"):
        later(START | {"B": START["B"] + np.float32(1.1e-2)})


def test_a_factor_that_was_not_trained_does_not_move_at_all() -> None:
    with pytest.raises(SecureAggregationError, match="A moved by"):
        later(START | {"A": START["A"] + np.float32(1e-6)})


@pytest.mark.parametrize(
    "received",
    [
        {"A": START["A"]},
        START | {"C": START["A"]},
        START | {"B": START["B"].T.copy()},
        START | {"B": np.full((3, 2), np.nan, np.float32)},
    ],
    ids=["missing", "extra", "shape", "nan"],
)
def test_missing_extra_misshapen_and_nan_tensors_are_refused(received) -> None:
    with pytest.raises(SecureAggregationError, match="FT917"):
        later(received)
    with pytest.raises(SecureAggregationError, match="FT917"):
        check_start_adapter(received, START)


def test_rounding_to_levels_is_allowed_for() -> None:
    moved = START | {"B": START["B"] + np.float32(1e-2 * 1.0003)}
    later(moved, excess=1 / 3276)
    with pytest.raises(SecureAggregationError, match="FT917"):
        later(moved)
