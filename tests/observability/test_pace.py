"""What is shown of sites at their own pace, and of virtual time."""

from __future__ import annotations

from dataclasses import replace

from rich.console import Console
from support.synthetic_run import synthetic_run

from fedtune.observability.events import (
    ClientTrained,
    Event,
    RoundFinished,
    effective_events,
    event_line,
    parse_event,
)
from fedtune.observability.progress_lines import event_text
from fedtune.observability.progress_state import ProgressState
from fedtune.observability.report_html import render_report
from fedtune.observability.summary import summarise
from fedtune.observability.summary_table import print_summary


def own_pace() -> list[Event]:
    """Every update of Eye comes twice, two steps late the second time; a round takes 90 virtual seconds."""
    found: list[Event] = []
    for event in synthetic_run(failure=False):
        if isinstance(event, ClientTrained):
            first = replace(event, training=2 * event.round - 1, staleness=0, virtual_seconds=1.0)
            found.append(first)
            if event.client == "Eye":
                found.append(replace(first, training=2 * event.round, staleness=2))
        elif isinstance(event, RoundFinished):
            found.append(replace(event, virtual_seconds=90.0 * event.round))
        else:
            found.append(event)
    return found


def test_a_site_that_came_twice_counts_twice_and_is_named_once() -> None:
    events = own_pace()
    assert [parse_event(event_line(event)) for event in events] == events
    assert len(effective_events(events)) == len(events)
    summary = summarise(events)
    row = summary["round_table"][1]
    assert len(row["clients"]) == 6
    assert sorted(row["staleness"]) == [0, 0, 0, 0, 0, 0, 2]
    assert summary["staleness_max"] == 2
    assert summary["virtual_seconds"] == row["virtual_seconds"] * 4 == 360.0


def test_it_is_shown_where_it_is_and_nowhere_else() -> None:
    console = Console(record=True, width=120, file=None, quiet=False)
    with console.capture() as shown:
        print_summary(summarise(own_pace()), console)
    assert "6 min 0 s" in shown.get()
    assert "0.29 steps on average, 2 at most" in shown.get()
    with console.capture() as plain:
        print_summary(summarise(synthetic_run()), console)
    assert "virtual" not in plain.get()
    assert "Virtual time" in render_report(own_pace())
    assert "Virtual time" not in render_report(synthetic_run())


def test_a_line_says_how_late_an_update_is_and_what_time_it_is() -> None:
    state, lines = ProgressState(), []
    for event in own_pace():
        state.observe(event)
        lines.append(event_text(event, state))
    assert any("Eye trained" in line and "staleness 2" in line for line in lines)
    assert any("virtual time 1 min 30 s" in line for line in lines)
