"""Weights of clients and their shares."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.aggregation.weighting import client_weight, normalised
from fedtune.errors import UpdateError


def test_what_a_client_is_weighted_by() -> None:
    def weight(by: str) -> float:
        return client_weight(by, examples=32, response_tokens=900)  # type: ignore[arg-type]

    assert (weight("examples"), weight("tokens"), weight("uniform")) == (32.0, 900.0, 1.0)


@given(st.dictionaries(st.text(), st.floats(0, 1e12), min_size=1).filter(lambda w: sum(w.values()) > 1e-9))
def test_shares_sum_to_one_and_keep_the_ratios(weights: dict[str, float]) -> None:
    shares = normalised(weights)
    assert list(shares) == list(weights)
    assert math.fsum(shares.values()) == pytest.approx(1.0)
    total = math.fsum(weights.values())
    assert all(shares[name] == pytest.approx(weight / total) for name, weight in weights.items())


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": 0, "b": 0}, {"a": 1e308, "b": 1e308}])
def test_a_sum_that_cannot_be_divided_by_is_an_error(weights: dict[str, float]) -> None:
    with pytest.raises(UpdateError, match=f"FT506: the weights of {len(weights)} clients sum to"):
        normalised(weights)


def test_every_weight_that_is_none_is_named() -> None:
    with pytest.raises(UpdateError) as caught:
        normalised({"heart": -1.0, "lung": 2.0, "skin": math.nan, "bone": math.inf})
    assert [problem.where for problem in caught.value.problems] == [
        "client heart",
        "client skin",
        "client bone",
    ]
    assert "got nan" in caught.value.problems[1].what
