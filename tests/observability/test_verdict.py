"""Did federation help? Every site where it did not is named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.synthetic_run import SITES, synthetic_run

from fedtune.observability.events import BaselineFinished, ClientEvaluated, Event
from fedtune.observability.summary import summarise
from fedtune.observability.verdict import Verdict, verdict


def with_local(losses: dict[str, float]) -> list[Event]:
    """A run whose local baselines differ from the federated loss by the given amount."""
    events = synthetic_run()
    final = {e.client: e.loss for e in events if isinstance(e, ClientEvaluated) and e.round == 4}
    return [
        replace(event, held_out_loss={event.site: (final[event.site] or 0) + losses[event.site]})
        if isinstance(event, BaselineFinished) and event.site is not None
        else event
        for event in events
    ]


def judge(events: list[Event]) -> Verdict:
    return verdict(summarise(events))


@given(st.fixed_dictionaries({name: st.sampled_from([-0.1, 0.0, 0.1]) for name in SITES}))
def test_exactly_the_sites_that_are_not_better_are_named(differences: dict[str, float]) -> None:
    answer = judge(with_local(differences))
    worse = [name for name in SITES if differences[name] <= 0]
    said = next((sentence for sentence in answer.sentences if sentence.startswith("It did not help")), "")
    assert [name for name in SITES if name in said] == worse
    tone = "good" if not worse else "bad" if len(worse) == len(SITES) else "mixed"
    assert answer.tone == tone
    which = {
        "good": "every site",
        "bad": "no site",
        "mixed": f"{len(SITES) - len(worse)} of {len(SITES)} sites",
    }
    assert answer.headline == f"Federating helped {which[tone]}."


def test_without_local_baselines_the_base_is_what_it_is_compared_with_and_that_is_said() -> None:
    answer = judge(synthetic_run(baselines=False))
    assert answer.headline == "The federated model beats the base at every site."
    assert "alone was not measured" in answer.sentences[-1]
    assert "from 3.17 for the base" in answer.sentences[0]


def test_all_four_means_and_the_share_of_the_pooled_gain_are_said() -> None:
    text = " ".join(judge(synthetic_run()).sentences)
    for number in ("3.17", "2.54", "2.64", "2.48", "91 %"):
        assert number in text


@pytest.mark.parametrize("events", [[], synthetic_run()[:1], synthetic_run()[:5]])
def test_a_run_without_a_result_says_so(events: list[Event]) -> None:
    answer = judge(events)
    assert answer.tone == "open"
    assert answer.headline == "There is no result yet."
    assert answer.sentences


def test_a_site_without_a_comparison_is_named() -> None:
    events = [
        event
        for event in synthetic_run()
        if not (isinstance(event, ClientEvaluated) and event.client == "Eye" and event.round == 4)
    ]
    assert "There is no comparison for Eye." in judge(events).sentences


def test_a_loss_that_is_not_a_number_is_said_and_not_averaged() -> None:
    events = [
        replace(event, loss=math.nan)
        if isinstance(event, ClientEvaluated) and event.client == "Eye" and event.round == 4
        else event
        for event in synthetic_run()
    ]
    answer = judge(events)
    assert "not a number" in answer.sentences[0]
    assert "There is no comparison for Eye." in answer.sentences


def test_a_model_that_got_worse_is_not_said_to_have_fallen() -> None:
    events = [
        replace(event, loss=event.loss + 1)
        if isinstance(event, ClientEvaluated) and event.round > 0 and event.loss
        else event
        for event in synthetic_run(baselines=False)
    ]
    answer = judge(events)
    assert answer.tone == "bad"
    assert answer.headline == "The federated model beats the base at no site."
    assert "fell" not in answer.sentences[0]


def test_one_site_is_the_one_site() -> None:
    assert judge(synthetic_run(names=["Eye"], baselines=False)).headline == (
        "The federated model beats the base at the one site."
    )
