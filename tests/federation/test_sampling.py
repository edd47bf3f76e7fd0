"""Cohorts: uniform, without replacement, and the same after a restart."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from fedtune.federation.sampling import evaluated_clients, sample_clients

NAMES = st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=12, unique=True)


@given(names=NAMES, count=st.integers(1, 14), seed=st.integers(0, 2**40), round_number=st.integers(1, 99))
def test_a_cohort_holds_distinct_known_clients_whatever_their_order(
    names: list[str], count: int, seed: int, round_number: int
) -> None:
    cohort = sample_clients(names, count=count, seed=seed, round_number=round_number)
    assert len(set(cohort)) == len(cohort) == min(count, len(names))
    assert set(cohort) <= set(names)
    assert list(cohort) == sorted(cohort)
    assert cohort == sample_clients(names[::-1], count=count, seed=seed, round_number=round_number)


def test_all_clients_take_part_where_no_number_is_given() -> None:
    assert sample_clients(["b", "a"], count=None, seed=0, round_number=1) == ("a", "b")


def test_every_client_is_drawn_equally_often() -> None:
    names = [f"site{number}" for number in range(8)]
    drawn = Counter(
        name for r in range(1, 2001) for name in sample_clients(names, count=2, seed=5, round_number=r)
    )
    # Binomial(2000, 1/4): 500 expected, standard deviation 19.4; five of them on either side.
    assert all(403 < drawn[name] < 597 for name in names)


@given(names=NAMES, count=st.integers(1, 14), seed=st.integers(0, 2**40))
def test_the_evaluated_clients_hardly_change_where_one_comes_or_goes(
    names: list[str], count: int, seed: int
) -> None:
    chosen = evaluated_clients(names, count=count, seed=seed)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(count, len(names))
    assert chosen == evaluated_clients(names[::-1], count=count, seed=seed)
    fewer = evaluated_clients(names[1:], count=count, seed=seed)
    assert len(set(chosen) - set(fewer)) <= 1


def test_every_client_is_evaluated_in_equally_many_seeds() -> None:
    names = [f"client-{number}" for number in range(10)]
    drawn = Counter(name for seed in range(2000) for name in evaluated_clients(names, count=3, seed=seed))
    # Binomial with n = 2000, p = 0.3: mean 600, standard deviation 20.5; within 5 of them.
    assert all(abs(times - 600) < 103 for times in drawn.values())


def test_all_are_evaluated_where_no_number_is_given() -> None:
    assert evaluated_clients({"b": 1, "a": 2}, count=None, seed=0) == ["a", "b"]
