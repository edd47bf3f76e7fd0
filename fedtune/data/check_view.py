"""The report of ``fedtune data check`` on a screen, and as JSON."""

from __future__ import annotations

import json
import sys

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fedtune.config.schema import DataConfig
from fedtune.data.check import CheckReport, Lengths, Sample

__all__ = ["print_json", "print_report"]

_MOST_PROBLEMS = 50
_MOST_CHARACTERS = 1500


def print_json(report: CheckReport) -> None:
    """Print the report as one JSON object to stdout."""
    json.dump(report.as_dict(), sys.stdout, ensure_ascii=True, indent=2)
    sys.stdout.write("\n")


def print_report(report: CheckReport, data: DataConfig, *, console: Console | None = None) -> None:
    """Print the report for a person to stderr.

    Args:
        report: What was found.
        data: The configuration that it was checked against.
        console: Where to print instead.
    """
    screen = console or Console(stderr=True, highlight=False)
    screen.print(_facts(report, data))
    for sample in report.samples:
        cut = f"  ({sample.cut_tokens} tokens cut)" if sample.cut_tokens else ""
        told = f"\nrow {sample.id}{cut}; the model learns to write what is between ⟦ and ⟧"
        screen.print(_text(told, "bold"), soft_wrap=True)
        screen.print(Padding(_marked(sample), (0, 0, 0, 2)))
    for note in report.notes:
        screen.print(_text(f"\nnote: {note}"), soft_wrap=True)
    for problem in report.problems[:_MOST_PROBLEMS]:
        screen.print(_text(f"\n{problem}"), soft_wrap=True)  # paths stay whole, to be copied
    hidden = len(report.problems) - _MOST_PROBLEMS
    if hidden > 0:
        screen.print(_text(f"\nand {hidden} more problems: --json lists all"))
    verdict, style = (
        ("ready to train", "bold green") if report.ok else ("a run would refuse this data", "bold red")
    )
    screen.print(_text(f"\n{report.source}: {verdict}", style), soft_wrap=True)


def _facts(report: CheckReport, data: DataConfig) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("rows", str(report.rows))
    if report.bad_rows:
        table.add_row(
            "bad rows", f"{report.bad_rows} ({'left out' if data.on_bad_row == 'skip' else 'refused'})"
        )
    table.add_row("row length", _length(report.row_lengths))
    table.add_row("response length", _length(report.response_lengths))
    if report.truncated is not None:
        table.add_row(
            "truncated", f"{report.truncated} rows are longer than data.max_tokens={data.max_tokens}"
        )
    for column, values in report.labels.items():
        counts = ", ".join(f"{value} {count}" for value, count in list(values.items())[:8])
        more = f", and {len(values) - 8} more" if len(values) > 8 else ""
        table.add_row(_text(f"column {column}"), _text(counts + more))
    return table


def _length(lengths: Lengths | None) -> str:
    if lengths is None:
        return "-"
    return f"median {lengths.median:g}, 95 % up to {lengths.p95:g}, longest {lengths.max} {lengths.unit}"


def _marked(sample: Sample) -> Text:
    text = Text()
    for part in sample.segments:
        if part.in_loss:
            text.append("⟦", "bold").append(_text(_shortened(part.text), "green")).append("⟧", "bold")
        else:
            text.append(_text(_shortened(part.text), "dim"))
    return text


def _text(text: str, style: str = "") -> Text:
    """Text in which no character can steer the terminal: rows may hold escape sequences."""
    shown = (mark if mark.isprintable() or mark == "\n" else f"\\x{ord(mark):02x}" for mark in text)
    return Text("".join(shown), style)


def _shortened(text: str) -> str:
    half = _MOST_CHARACTERS // 2
    if len(text) <= _MOST_CHARACTERS:
        return text
    return f"{text[:half]} … {len(text) - 2 * half} characters not shown … {text[-half:]}"
