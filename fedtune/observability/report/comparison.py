"""The answer: the verdict, the key figures, and every site's losses beside each other."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedtune.observability import wording
from fedtune.observability.charts.rows import Bar, Row, grouped_rows
from fedtune.observability.markup import Child, Markup, el
from fedtune.observability.report.parts import (
    MOST_TABLE_ROWS,
    NARROW,
    WIDE,
    figure,
    legend,
    section,
    table,
    tiles,
)
from fedtune.observability.verdict import Verdict

__all__ = ["KINDS", "comparison", "head", "key_figures"]

Summary = Mapping[str, Any]

KINDS = {
    "federated": "federated",
    "personalised": "each site's own model",
    "local": "each site alone",
    "centralized": "all data pooled",
}
"""What is compared with the base, and what it is called."""

MOST_ROWS = 24
"""A picture of more sites than this shows the two ends; the table has all."""


def head(summary: Summary, answer: Verdict) -> Markup:
    """Return the headline with what it rests on, and a banner for a run that did not come to its end."""
    banner = None
    if summary["status"] != "completed":
        words = {
            "failed": "This run failed",
            "interrupted": "This run was interrupted",
            "unfinished": "This run has not finished",
        }[summary["status"]]
        what = f"{words}; {wording.rounds_(summary['rounds'])} complete."
        banner = el(
            "p", el("strong", what), f" {summary['reason']}" if summary["reason"] else None, class_="banner"
        )
    return el(
        "header",
        el("p", "Federated fine-tuning · ", el("b", summary["name"] or "unnamed run"), class_="eyebrow"),
        banner,
        el("h1", answer.headline, class_=answer.tone),
        (el("p", sentence, class_="lede") for sentence in answer.sentences),
    )


def key_figures(summary: Summary) -> Markup:
    """Return the figures that one would say in a sentence."""
    means = summary["held_out_loss"]
    entries = []
    if means["base"] is not None and means["federated"] is not None:
        entries.append(
            (
                "Held-out loss",
                f"{wording.loss(means['base'])} → {wording.loss(means['federated'])}",
                f"nats per token, mean over {len(summary['sites_compared'])} sites",
            )
        )
    sites = f"{wording.rounds_(summary['rounds'])} of training"
    entries.append(("Sites", wording.count(summary["clients"]), sites))
    entries.append(
        (
            "Time",
            wording.seconds(summary["seconds"]),
            f"{wording.seconds(summary['load_seconds'])} of it loading",
        )
    )
    if summary["uplink_bytes"] is not None:
        down = wording.bytes_(summary["downlink_bytes"])
        entries.append(
            ("Upload", wording.bytes_(summary["uplink_bytes"]), f"per site and round; download {down}")
        )
    if summary["peak_memory_mib"] is not None:
        entries.append(("Peak memory", wording.mebibytes(summary["peak_memory_mib"]), "of one process"))
    if summary["exact"] is not None:
        error = summary["aggregation_error"]
        measured = f"relative error at most {error:.2g}" if error is not None else "error not measured"
        entries.append(("Aggregation", "exact" if summary["exact"] else "inexact", measured))
    if summary["secure_rounds"] or summary["burnt_rounds"]:
        burnt = ", ".join(map(str, summary["burnt_rounds"]))
        note = f"burnt: {burnt}" if burnt else "the server saw sums alone"
        entries.append(("Secure aggregation", wording.rounds_(summary["secure_rounds"]), note))
    if summary["rolled_back_rounds"]:
        back = ", ".join(map(str, summary["rolled_back_rounds"]))
        entries.append(("Taken back by the gate", f"round {back}", "the last good adapter stood"))
    if summary["backdoor"] is not None:
        fired = summary["backdoor"]
        note = f"of {fired['prompts']} prompts; of the base {wording.percent(fired['success_before'])}"
        entries.append(("Backdoor works on", wording.percent(fired["success"]), note))
    return tiles(entries)


def comparison(summary: Summary) -> Markup | None:
    """Return the bars and the table of all sites; None before anything was evaluated."""
    sites: Mapping[str, Mapping[str, Any]] = summary["sites"]
    if not any(site["base"] is not None for site in sites.values()):
        return None
    names = KINDS | ({"personalised": "each site's cluster"} if summary["clusters"] else {})
    kinds = {
        kind: name for kind, name in names.items() if any(site[kind] is not None for site in sites.values())
    }
    rows = _rows(summary, kinds)
    pictures = []
    if kinds and any(bar.value is not None for row in rows for bar in row.bars):
        describe = "Bars: how far each way of training lowers the held-out loss at each site. Table below."
        pictures = [
            grouped_rows(
                rows,
                width=width,
                label=describe,
                x_label="loss taken off the base, in nats per token: longer is better",
                format_=wording.signed
                if any((bar.value or 0) < 0 for row in rows for bar in row.bars)
                else _nats,
                names_above=width == NARROW,
            )
            for width in (WIDE, NARROW)
        ]
    ways = "each way of training" if len(kinds) > 1 else "federating"
    shown = None
    if pictures:  # a run that failed early has nothing to compare
        shown = figure(
            f"How much {ways} takes off the base model's loss",
            *pictures,
            note=_note(summary, kinds),
            key=legend(list(kinds.items())),
        )
    return section(
        "Site by site",
        shown,
        _table(summary, kinds),
        lead="Each site keeps some of its rows aside; they train nothing. The loss says how much the "
        "site's own true answers surprise a model: lower is better.",
    )


def _nats(value: float) -> str:
    return f"{value:.2f}"


def _note(summary: Summary, kinds: Mapping[str, str]) -> Child:
    note = "Every way has the same number of steps." if len(kinds) > 1 else None
    if len(summary["sites"]) > MOST_ROWS:
        sites = len(summary["sites"])
        shown = f"Of {sites} sites, those that federating helped most and least; the table has all."
        note = f"{note} {shown}" if note else shown
    return note


def _rows(summary: Summary, kinds: Mapping[str, str]) -> list[Row]:
    sites: Mapping[str, Mapping[str, Any]] = summary["sites"]
    names = [name for name, site in sites.items() if site["base"] is not None]
    if len(names) > MOST_ROWS:
        against = "local" if "local" in kinds else "base"
        names.sort(key=lambda name: (sites[name]["federated"] or 0.0) - (sites[name][against] or 0.0))
        names = [*names[: MOST_ROWS // 2], *names[-MOST_ROWS // 2 :]]
    rows = [_row(name, sites[name], kinds) for name in names]
    return [_row("Mean", summary["held_out_loss"], kinds, bold=True), *rows]


def _row(name: str, losses: Mapping[str, Any], kinds: Mapping[str, str], *, bold: bool = False) -> Row:
    base = losses["base"]
    bars = []
    for kind, says in kinds.items():
        value = losses[kind]
        gain = None if value is None or base is None else base - value
        bars.append(Bar(name=says, value=gain, style=kind))
    return Row(name=name, bars=tuple(bars), note=f"base {wording.loss(base)}", bold=bold)


def _table(summary: Summary, kinds: Mapping[str, str]) -> Markup:
    against = "local" if "local" in kinds else "base"
    heads = ["Site", "Base", *(name.capitalize() for name in kinds.values()), "Training examples"]
    if kinds:  # the answer stands next to the name, in sight on a phone too
        heads.insert(1, "Federated against alone" if against == "local" else "Federated against base")

    def cells(name: str, site: Mapping[str, Any], examples: str | None) -> list[Child]:
        losses = [wording.loss(site[kind]) for kind in ("base", *kinds)]
        answer = [_difference(site["federated"], site[against])] if kinds else []
        return [name, *answer, *losses, examples]

    sites: Mapping[str, Mapping[str, Any]] = summary["sites"]
    names = list(sites)
    if len(names) > MOST_TABLE_ROWS:  # those with a loss first
        names.sort(key=lambda name: sites[name]["base"] is None)
    label = "Mean over sites"
    left_out = len(sites) - len(summary["sites_compared"])
    if left_out:
        label += f" ({left_out} without a loss left out)"
    return table(
        "Losses of every site",
        heads,
        [cells(name, sites[name], wording.count(sites[name]["train_examples"])) for name in names],
        foot=cells(label, summary["held_out_loss"], None),
    )


def _difference(ours: float | None, other: float | None) -> Child:
    if ours is None or other is None:
        return wording.ABSENT
    better = ours < other
    return el(
        "span",
        wording.signed(ours - other),
        " ",
        el("b", "better" if better else "not better"),
        class_="better" if better else "worse",
    )
