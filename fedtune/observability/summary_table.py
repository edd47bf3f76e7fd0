"""A summary as text for a terminal: what ``fedtune report RUN`` prints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedtune.observability import wording
from fedtune.observability.verdict import verdict

__all__ = ["print_summary"]

_TONES = {"good": "bold green", "mixed": "bold yellow", "bad": "bold red", "open": "bold"}
_MOST_SITES = 100
"""Rows of a table in the terminal; ``--json`` has all."""
_KINDS = {
    "base": "base",
    "federated": "federated",
    "personalised": "own model",
    "local": "alone",
    "centralized": "pooled",
}


def print_summary(summary: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the verdict, every site's losses, the cost, and what failed.

    Args:
        summary: From ``summarise``.
        console: Where to; standard error by default, so that standard output stays for machines.
    """
    console = console or Console(stderr=True)
    answer = verdict(summary)
    console.print(Text(_clean(f"{summary['name'] or 'unnamed run'}: {summary['status']}"), style="dim"))
    if summary["reason"]:
        console.print(Text(_clean(summary["reason"]), style="red"))
    console.print(Text(_clean(answer.headline), style=_TONES[answer.tone]))
    for sentence in answer.sentences:
        console.print(Text(_clean(sentence)))
    if summary["sites"]:
        console.print()
        console.print(_losses(summary))
    console.print()
    console.print(_cost(summary))
    if summary["failures"]:
        console.print()
        console.print(_failures(summary))


def _losses(summary: Mapping[str, Any]) -> Table:
    sites: Mapping[str, Mapping[str, Any]] = summary["sites"]
    kinds = [kind for kind in _KINDS if any(site[kind] is not None for site in sites.values())]
    table = Table(title="Held-out loss, nats per token", title_justify="left", box=None, pad_edge=False)
    table.add_column("site")
    table.add_column("examples", justify="right")
    for kind in kinds:
        table.add_column(_KINDS[kind], justify="right")
    table.add_column("better than alone")
    answers = {True: Text("yes", style="green"), False: Text("no", style="bold red"), None: Text("")}
    known = [name for name, site in sites.items() if any(site[kind] is not None for kind in kinds)]
    names = list(sites) if len(sites) <= _MOST_SITES else known[:_MOST_SITES]
    for name in names:
        site = sites[name]
        table.add_row(
            Text(_clean(name)),
            wording.count(site["train_examples"]),
            *(wording.loss(site[kind]) for kind in kinds),
            answers[site["better_than_local"]],
        )
    if len(names) < len(sites):
        table.add_row(Text(f"and {len(sites) - len(names):,} more, see --json", style="dim"))
    table.add_row("mean", "", *(wording.loss(summary["held_out_loss"][kind]) for kind in kinds), style="bold")
    return table


def _cost(summary: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    exact = {True: "exact", False: "inexact", None: wording.ABSENT}[summary["exact"]]
    error = summary["aggregation_error"]
    rows = {
        "rounds": f"{summary['rounds']}, {summary['clients']} sites",
        "time": wording.seconds(summary["seconds"]),
        "of it loading": wording.seconds(summary["load_seconds"]),
        "outside training and evaluation": wording.percent(summary["overhead_fraction"]),
        "sent per site and round": f"{wording.bytes_(summary['uplink_bytes'])} up, "
        f"{wording.bytes_(summary['downlink_bytes'])} down",
        "tokens trained on": wording.count(summary["tokens"]),
        "tokens a second": wording.count(summary["tokens_per_second"]),
        "peak memory": wording.mebibytes(summary["peak_memory_mib"]),
        "aggregation": exact if error is None else f"{exact}, error at most {error:.2g}",
    }
    if summary["secure_rounds"] or summary["burnt_rounds"]:
        burnt = ", ".join(map(str, summary["burnt_rounds"]))
        rows["secure aggregation"] = f"{summary['secure_rounds']} rounds opened" + (
            f", burnt: {burnt}" if burnt else ""
        )
    if summary["virtual_seconds"] is not None:
        rows["virtual time"] = wording.seconds(summary["virtual_seconds"])
    if summary["staleness_max"] is not None:
        rows["staleness of updates"] = (
            f"{summary['staleness_mean']:.2g} steps on average, {summary['staleness_max']} at most"
        )
    if summary["dropped_groups"]:
        dropped = (f"{each['group']} in round {each['round']}" for each in summary["dropped_groups"])
        rows["groups without a sum"] = ", ".join(dropped)
    if summary["clusters"]:
        sizes = wording.listing([str(len(names)) for names in summary["clusters"]["members"]])
        rows["clusters"] = f"of {sizes} sites, made in round {summary['clusters']['round']}"
    if summary["rolled_back_rounds"]:
        rows["taken back by the gate"] = "rounds " + ", ".join(map(str, summary["rolled_back_rounds"]))
    backdoor = summary["backdoor"]
    if backdoor is not None:
        rows["backdoor"] = (
            f"{wording.percent(backdoor['success'])} of {backdoor['prompts']} prompts with the trigger, "
            f"{wording.percent(backdoor['success_without_trigger'])} without, "
            f"{wording.percent(backdoor['success_before'])} of the base"
        )
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), value)
    return table


def _failures(summary: Mapping[str, Any]) -> Table:
    table = Table(title="What failed", title_justify="left", box=None, pad_edge=False)
    for heading in ("round", "site", "in", "code", "reason"):
        table.add_column(heading)
    for failure in summary["failures"][:_MOST_SITES]:
        cells = (str(failure[key]) for key in ("round", "client", "stage", "code", "reason"))
        table.add_row(*(Text(_clean(cell)) for cell in cells))
    if len(summary["failures"]) > _MOST_SITES:
        more = f"and {len(summary['failures']) - _MOST_SITES:,} more, see --json"
        table.add_row("", Text(more, style="dim"))
    return table


def _clean(text: str) -> str:
    """Keep control characters off the terminal; line breaks of a reason may stay."""
    return "".join(char if char.isprintable() or char == "\n" else " " for char in text)
