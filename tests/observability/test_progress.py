"""The progress display follows the events and nothing else."""

from __future__ import annotations

import io
import itertools
import sys
from dataclasses import replace

import pytest
from rich.console import Console
from support.synthetic_run import SITES, synthetic_run

from fedtune.observability.events import (
    ClientEvaluated,
    ClientFailed,
    ClientTrained,
    Event,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    StepProgress,
)
from fedtune.observability.progress import progress
from fedtune.observability.progress_state import ProgressState
from fedtune.observability.summary import summarise
from fedtune.observability.summary_table import print_summary


def with_steps(events: list[Event]) -> list[Event]:
    """Add the steps that lead to each trained client."""
    told: list[Event] = []
    for event in events:
        if isinstance(event, ClientTrained):
            span = event.finished - event.started
            told += [
                StepProgress(
                    time=event.started + span * step / event.steps,
                    round=event.round,
                    client=event.client,
                    step=step,
                    steps=event.steps,
                    loss=2.5,
                    tokens_per_second=250.0,
                )
                for step in range(1, event.steps + 1)
            ]
        told.append(event)
    return told


def plain(events: list[Event]) -> list[str]:
    file = io.StringIO()
    with progress(Console(file=file, width=80)) as observer:
        for event in events:
            observer(event)
    return file.getvalue().splitlines()


def live(events: list[Event]) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=140, height=50, color_system=None, _environ={})
    with progress(console) as observer:
        for event in events:
            observer(event)
    return file.getvalue()


def test_without_a_terminal_there_is_one_line_for_each_client_trained_and_each_round() -> None:
    events = with_steps(synthetic_run())
    lines = plain(events)
    trained = [event for event in events if isinstance(event, ClientTrained)]
    finished = [event for event in events if isinstance(event, RoundFinished)]
    assert sum(" trained: " in line for line in lines) == len(trained)
    assert sum("  finished" in line or "base  evaluated" in line for line in lines) == len(finished)
    assert not any("\x1b" in line for line in lines)
    assert "base  evaluated, held-out loss 3.17" in lines
    assert lines[-1].startswith("run completed in 4 min")


def test_a_line_names_round_client_losses_speed_and_time_left() -> None:
    line = next(line for line in plain(with_steps(synthetic_run())) if "Eye trained" in line)
    assert line.startswith("round 1/4  Eye trained: loss 3.08 → 2.39, ")
    assert "tokens/s, 3 of 6, about 3 min left" in line


@pytest.mark.parametrize("show", [lambda events: "\n".join(plain(events)), live])
def test_every_failed_client_is_named_with_its_reason(show: object) -> None:
    events = with_steps(synthetic_run())
    shown = show(events)  # type: ignore[operator]
    for event in events:
        if isinstance(event, ClientFailed):
            assert f"{event.client} FAILED" in shown
            assert f"{event.code}: {event.reason}" in shown


def test_the_live_table_names_every_client_of_the_round_and_what_it_does() -> None:
    events = with_steps(synthetic_run())
    at = next(
        index
        for index, e in enumerate(events)
        if isinstance(e, StepProgress) and e.round == 2 and e.client == "Ear"
    )
    shown = live(events[: at + 1])
    table = shown[shown.rindex("did-it-help  round 2/4  training") :]
    assert all(name in table for name in SITES)
    assert "FT402: the loss is not a number at step 3 of 8" in table
    assert table.count("trained") == 4
    assert "base 3.17  1 2.67" in table


def test_a_live_display_of_many_clients_never_hides_a_failed_one() -> None:
    clients = tuple(f"site {number:03d}" for number in range(200))
    events: list[Event] = [
        RunStarted(time=1.0, name="many", config={"federation": {"rounds": 2}}, version="1", machine={}),
        RoundStarted(time=2.0, round=1, clients=clients, factors=("A", "B")),
        ClientFailed(time=3.0, round=1, client="site 173", stage="train", code="FT402", reason="NaN"),
    ]
    table = live(events)
    table = table[table.rindex("many  round 1/2") :]
    assert "site 173" in table
    assert "and 184 more" in table


def test_names_from_another_machine_cannot_command_the_terminal() -> None:
    evil = "\x1b[2J[bold]St. \x07Mary\n"
    events: list[Event] = [
        RoundStarted(time=2.0, round=1, clients=(evil,), factors=("A", "B")),
        ClientFailed(time=3.0, round=1, client=evil, stage="train", code="FT402", reason="\x1b]0;x\x07"),
    ]
    lines = plain(events)
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    assert "\x07" not in lines[0]
    assert "[bold]St." in lines[0]
    assert "\x1b[2J[bold]" not in live(events)


def test_a_reader_that_goes_away_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stderr", Gone())
    with progress() as observer:
        for event in synthetic_run():
            observer(event)


def test_time_left_falls_to_nothing_and_is_right_for_equal_rounds() -> None:
    state = ProgressState()
    estimates: list[tuple[float, float]] = []
    events = with_steps(synthetic_run(baselines=False, failure=False))
    end = max(event.time for event in events if isinstance(event, RoundFinished))
    for event in events:
        state.observe(event)
        left = state.seconds_left(event.time)
        if left is not None and isinstance(event, RoundFinished | ClientTrained):
            estimates.append((left, end - event.time))
    after_first_round = estimates[6:]
    assert len(after_first_round) == 3 * 6 + 4
    assert all(left == pytest.approx(truth, abs=20) for left, truth in after_first_round)
    assert estimates[-1][0] == 0


def test_time_left_is_unknown_before_the_first_step_and_without_a_number_of_rounds() -> None:
    state = ProgressState()
    for event in synthetic_run()[:9]:
        state.observe(event)
        assert state.seconds_left(event.time) is None
    state = ProgressState()
    for event in synthetic_run():
        state.observe(replace(event, config={}) if isinstance(event, RunStarted) else event)
        assert state.seconds_left(event.time) is None


def test_a_resumed_run_counts_on_from_the_round_it_kept() -> None:
    events = synthetic_run(failure=False, baselines=False)
    state = ProgressState()
    for event in events:
        if isinstance(event, RunStarted):
            state.observe(replace(event, resumed_after=2))
        elif getattr(event, "round", 3) > 2:
            state.observe(event)
        if isinstance(event, RoundFinished) and event.round == 3:
            assert state.seconds_left(event.time) == pytest.approx(60, abs=15)
    assert state.round == 4


def test_states_of_a_client_go_from_waiting_to_evaluated() -> None:
    state = ProgressState()
    seen = []
    for event in with_steps(synthetic_run()):
        state.observe(event)
        if state.round == 1 and "Eye" in state.clients:
            seen.append(state.clients["Eye"].status)
    assert [status for status, _ in itertools.groupby(seen)] == [
        "waiting",
        "training",
        "trained",
        "evaluated",
    ]


def test_the_mean_of_the_base_is_over_the_sites_evaluated() -> None:
    state = ProgressState()
    losses = []
    for event in synthetic_run():
        state.observe(event)
        if isinstance(event, ClientEvaluated) and event.round == 0 and event.loss:
            losses.append(event.loss)
            assert state.held_out[0] == pytest.approx(sum(losses) / len(losses))


def test_the_printed_summary_says_verdict_sites_cost_and_failures() -> None:
    file = io.StringIO()
    print_summary(summarise(synthetic_run()), Console(file=file, width=100))
    text = file.getvalue()
    for words in (
        "Federating helped 5 of 6 sites.", "Nervous system", "1,836", "9.3 MiB up", "1.6 GiB", "FT402",
        "inexact, error at most 0.31",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize("events", [[], synthetic_run()[:3], synthetic_run(finish=False, baselines=False)])
def test_a_summary_of_an_unfinished_run_can_be_printed(events: list[Event]) -> None:
    file = io.StringIO()
    print_summary(summarise(events), Console(file=file, width=100))
    assert "unfinished" in file.getvalue()


def test_a_failed_run_says_why() -> None:
    file = io.StringIO()
    end = RunFinished(
        status="failed", reason="FT601: too few replies", seconds=1.0, load_seconds=1.0, peak_memory_mib=1.0
    )
    print_summary(summarise([*synthetic_run()[:4], end]), Console(file=file, width=100))
    assert "FT601: too few replies" in file.getvalue()
