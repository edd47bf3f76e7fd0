"""The table of thresholds, the policy's own refusals, and the words of the promise."""

from __future__ import annotations

import pytest

from fedtune.errors import SecureAggregationError
from fedtune.secagg.policy import Policy
from fedtune.secagg.promise import promise
from fedtune.secagg.thresholds import active_colluders, threshold, tolerated_dropouts, too_small


@pytest.mark.parametrize(("members", "tolerated"), [(3, 0), (4, 1), (6, 1), (7, 2), (10, 3), (100, 33)])
def test_tolerated_dropouts(members: int, tolerated: int) -> None:
    assert tolerated_dropouts(members) == tolerated


def test_ten_members_withstand_three_active_colluders() -> None:
    assert active_colluders(10) == 3


@pytest.mark.parametrize("members", range(3, 200))
def test_two_confirmed_sets_share_more_honest_signers_than_an_active_server_can_split(members: int) -> None:
    # Two quorums of T overlap in at least 2T - n members; with fewer colluders one of those is honest.
    assert 2 * threshold(members) - members > active_colluders(members)
    assert threshold(members) <= members


def test_a_cohort_below_k_min_or_the_threshold_is_refused_with_both_numbers() -> None:
    (found,) = too_small(Policy(k_min=5), dealt=4, remaining=4, trip="U1")
    assert "4 members in U1, at least 5 are needed (k_min 5, threshold 3 of 4)" in found.what
    (found,) = too_small(Policy(k_min=5), dealt=10, remaining=6, trip="U2")
    assert "at least 7 are needed" in found.what
    assert too_small(Policy(k_min=5), dealt=10, remaining=7, trip="U3") == []


def test_colluders_are_bounded_by_the_quorum_and_by_the_sum_that_is_left() -> None:
    assert too_small(Policy(max_colluders=3), dealt=10, remaining=10, trip="U1") == []
    found = too_small(Policy(max_colluders=4), dealt=10, remaining=10, trip="U1")
    assert "withstand 3 colluders" in found[0].what
    found = too_small(Policy(k_min=3, max_colluders=2), dealt=3, remaining=3, trip="U3")
    assert "leave a sum of fewer than two" in found[0].what


def test_an_impossible_policy_lists_every_value() -> None:
    with pytest.raises(SecureAggregationError) as caught:
        Policy(k_min=2, max_colluders=-1, corrupt_fraction=1.5, attempt_seconds=0, prg="rc4")
    assert [item.where for item in caught.value.problems] == [
        "k_min", "max_colluders", "corrupt_fraction", "attempt_seconds", "prg",
    ]  # fmt: skip
    with pytest.raises(SecureAggregationError, match="nobody honest is left"):
        Policy(corrupt_fraction=0.6, drop_fraction=0.4)


def test_the_promise_names_the_numbers_and_the_limits() -> None:
    text = "\n".join(promise(10, Policy(k_min=5)))
    assert "7 of them must confirm" in text
    assert "tolerated dropouts: 3; smallest cohort here: 5" in text
    assert "6 colluding sites learn only the sum" in text
    assert "against an active server, 3 colluding sites do" in text
    assert "not differential privacy" in text
    assert "any two of them learn the third's update" in "\n".join(promise(3, Policy(k_min=3)))


def test_above_128_members_the_promise_states_its_assumptions() -> None:
    text = "\n".join(promise(1000, Policy()))
    assert "shares keys with 266 others, of whom 134 reconstruct" in text
    assert "at most 20% of the sites collude and 10% drop out" in text
    assert "2^-128" in text
