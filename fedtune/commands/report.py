"""``fedtune report RUN``: what a run gave, and its report drawn anew from its events."""

from __future__ import annotations

import argparse

from fedtune.commands.reporting import print_json, say
from fedtune.commands.runs import find_run
from fedtune.observability.events import read_events
from fedtune.observability.run_directory import events_path
from fedtune.observability.summary import summarise

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Print the summary; without ``--json`` also write ``report.html`` again.

    Returns:
        0, whatever became of the run: its ``status`` says it.
    """
    path = find_run(arguments.run)
    events = read_events(events_path(path))
    summary = summarise(events)
    if arguments.json:
        print_json(summary)
        return 0
    from fedtune.observability.report_html import write_report  # noqa: PLC0415
    from fedtune.observability.summary_table import print_summary  # noqa: PLC0415

    print_summary(summary)
    say(f"\nreport:  {write_report(events, path / 'report.html')}")
    return 0
