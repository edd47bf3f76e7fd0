"""The resume rule: what a later session voids, and what stands once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_run import synthetic_run

from fedtune.observability.events import (
    BaselineFinished,
    Event,
    Generated,
    RunFinished,
    RunStarted,
    effective_events,
)

FULL = synthetic_run(failure=True)
START = FULL[0]
assert isinstance(START, RunStarted)


def of_rounds_after(events: list[Event], last: int) -> list[Event]:
    return [event for event in events if getattr(event, "round", 0) > last]


def test_a_run_that_was_never_resumed_keeps_every_event() -> None:
    assert effective_events(FULL) == FULL


@given(cut=st.integers(1, len(FULL)), keep=st.integers(0, 5))
def test_a_resume_voids_later_rounds_and_ends_and_nothing_else(cut: int, keep: int) -> None:
    resumed = replace(START, time=2e9, resumed_after=keep)
    kept = effective_events([*FULL[:cut], resumed])
    voided = [event for event in FULL[:cut] if event not in kept]
    assert kept[-1] == resumed
    assert kept[:-1] == [event for event in FULL[:cut] if event not in voided]
    assert all(
        isinstance(event, RunFinished | Generated) or event in of_rounds_after(FULL, keep) for event in voided
    )
    assert of_rounds_after(kept, keep) == []
    assert not any(isinstance(event, RunFinished | Generated) for event in kept)


def test_baselines_stay_since_they_depend_on_no_round() -> None:
    kept = effective_events([*FULL, replace(START, resumed_after=0)])
    assert sum(isinstance(event, BaselineFinished) for event in kept) == 7


def test_a_second_start_that_keeps_nothing_starts_over() -> None:
    again = replace(START, time=2e9)
    assert effective_events([*FULL, again]) == [again]


@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_killed_after_any_round_and_resumed_reads_like_a_run_without_a_break(keep: int) -> None:
    rest = [event for event in FULL[1:] if getattr(event, "round", 0) > keep or not hasattr(event, "round")]
    kept = effective_events([*FULL, replace(START, resumed_after=keep), *rest])
    assert [event for event in kept if hasattr(event, "round")] == [e for e in FULL if hasattr(e, "round")]
    assert sum(isinstance(event, BaselineFinished) for event in kept) == 7
    assert sum(isinstance(event, RunFinished) for event in kept) == 1


def test_two_resumes_in_a_row_apply_one_after_the_other() -> None:
    kept = effective_events([*FULL, replace(START, resumed_after=3), replace(START, resumed_after=1)])
    assert {event.round for event in kept if hasattr(event, "round")} == {0, 1}


def test_an_evaluation_repeated_after_the_resume_stands_once_as_the_last_one() -> None:
    evaluation = next(event for event in FULL if event.name_on_disk == "client_evaluated")
    later = replace(evaluation, time=2e9, loss=1.25)
    kept = effective_events([*FULL, replace(START, resumed_after=4), later])
    assert [event for event in kept if getattr(event, "loss", None) == 1.25] == [later]
    assert evaluation not in kept
