"""How the loss fell, round by round, and what the sites hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedtune.observability import wording
from fedtune.observability.charts.lines import Line, line_chart
from fedtune.observability.charts.rows import Bar, Row, stacked_rows
from fedtune.observability.events import Sites, Split
from fedtune.observability.markup import Markup
from fedtune.observability.report.parts import NARROW, WIDE, figure, legend, section, table
from fedtune.observability.statistics import mean, total

__all__ = ["curves", "data"]

COLOURS = 8
"""Sites or labels that get a colour of their own; beyond that, lines turn grey and labels merge."""

MOST_ROWS = 24

MOST_LINES = 200
"""Sites whose losses are drawn as lines: of more, every n-th."""


def curves(summary: Mapping[str, Any]) -> Markup | None:
    """Return the held-out loss of every site over the rounds; None before two rounds were evaluated."""
    evaluated = [row for row in summary["round_table"] if row["held_out_losses"]]
    if len(evaluated) < 2:
        return None
    names = [name for name in summary["sites"] if any(name in row["held_out_losses"] for row in evaluated)]
    drawn = names[:: -(-len(names) // MOST_LINES)]
    few = len(names) <= COLOURS
    lines = [
        Line(
            name=name,
            points=tuple(
                (row["round"], row["held_out_losses"][name])
                for row in evaluated
                if row["held_out_losses"].get(name) is not None
            ),
            style=f"c{index}" if few else "many",
            labelled=few,
        )
        for index, name in enumerate(drawn)
    ]
    means = _means(evaluated, summary["sites_compared"])
    lines.append(Line(name="Mean over sites", points=means, style="mean", bold=True))
    pictures = [
        line_chart(
            lines,
            width=width,
            height=400 if width == WIDE else 300,
            label="Lines: held-out loss by round, one for each site, their mean in bold. Table below.",
            y_label="held-out loss, nats per token",
            format_=wording.loss,
            end_labels=width == WIDE,
            first_round="base",
        )
        for width in (WIDE, NARROW)
    ]
    entries = [("mean", "Mean over sites"), *((line.style, line.name) for line in lines[:-1] if few)]
    if not few:
        entries.append(
            (
                "many",
                f"{len(drawn)} of {len(names)} sites" if len(drawn) < len(names) else f"{len(names)} sites",
            )
        )
    heads = ["Site", *("Base" if row["round"] == 0 else f"Round {row['round']}" for row in evaluated)]
    by_round = dict(means)
    numbers = table(
        "Held-out loss by site and round",
        heads,
        [[name, *(wording.loss(row["held_out_losses"].get(name)) for row in evaluated)] for name in names],
        foot=["Mean over sites", *(wording.loss(by_round.get(row["round"])) for row in evaluated)],
    )
    shown = figure(
        "Held-out loss after each round",
        *pictures,
        note="Lower is better. The axis does not start at zero."
        + ("" if len(by_round) == len(evaluated) else " The mean is drawn where every site was evaluated."),
        key=legend(entries, narrow_only=few),
        numbers=numbers,
    )
    return section("How it learned", shown)


def _means(evaluated: Sequence[Mapping[str, Any]], names: Sequence[str]) -> tuple[tuple[int, float], ...]:
    """Means over the same sites in every round: a site that is missing would move the line by itself."""
    points = []
    for row in evaluated:
        value = mean(row["held_out_losses"].get(name) for name in names)
        if value is not None:
            points.append((row["round"], value))
    return tuple(points)


def data(sites: Sites | None, skipped_rows: int) -> Markup | None:
    """Return how rows, and labels where there are any, fall on the sites."""
    if sites is None or not sites.sites:
        return None
    split = sites.split
    by_label = split is not None and _mixed(split)
    rows, entries = _labels(sites, split) if split is not None and by_label else _sizes(sites)
    rows_in_all = total(
        count for site in sites.sites for count in (site.train_examples, site.held_out_examples)
    )
    pictures = [
        stacked_rows(
            _largest(rows),
            width=width,
            label="Bars: the number of rows at each site. Table below.",
            x_label="rows",
            format_=wording.count,
            names_above=width == NARROW,
        )
        for width in (WIDE, NARROW)
    ]
    known = "" if rows_in_all is None else f"{wording.count(rows_in_all)} rows at "
    lead = f"{known}{len(sites.sites)} sites; no row leaves its site."
    if split is not None and not by_label:
        lead += " Each site holds one label of its own, so the sites are as unlike as they can be."
    if skipped_rows:
        lead += f" {wording.count(skipped_rows)} bad rows were left out."
    note = (
        f"The {MOST_ROWS} largest of {len(rows)} sites; the table has all." if len(rows) > MOST_ROWS else None
    )
    return section(
        "What the sites hold",
        figure(
            "Labels at each site" if by_label else "Rows at each site",
            *pictures,
            note=note,
            key=legend(entries),
            numbers=_numbers(sites, rows if by_label else []),
        ),
        lead=lead,
    )


def _mixed(split: Split) -> bool:
    """Whether labels and sites are two things: some site holds more than one label."""
    return any(sum(count > 0 for count in row) > 1 for row in split.counts)


def _largest(rows: Sequence[Row]) -> list[Row]:
    if len(rows) <= MOST_ROWS:
        return list(rows)
    return sorted(rows, key=lambda row: -sum(bar.value or 0 for bar in row.bars))[:MOST_ROWS]


def _sizes(sites: Sites) -> tuple[list[Row], list[tuple[str, str]]]:
    rows = [
        Row(
            name=site.name,
            bars=(
                Bar(name="training", value=site.train_examples, style="federated"),
                Bar(name="held out", value=site.held_out_examples, style="base"),
            ),
            note=wording.count(total((site.train_examples, site.held_out_examples))),
        )
        for site in sites.sites
    ]
    return rows, [("federated", "training"), ("base", "held out")]


def _labels(sites: Sites, split: Split) -> tuple[list[Row], list[tuple[str, str]]]:
    totals = [sum(row[index] for row in split.counts) for index in range(len(split.labels))]
    order = sorted(range(len(totals)), key=lambda index: -totals[index])
    shown, rest = (order, []) if len(order) <= COLOURS else (order[: COLOURS - 1], order[COLOURS - 1 :])
    rows = []
    by_site = dict(zip(split.sites, split.counts, strict=True))
    for site in sites.sites:
        counts = by_site.get(site.name, (0,) * len(split.labels))
        bars = [
            Bar(name=split.labels[index], value=counts[index], style=f"c{place}")
            for place, index in enumerate(shown)
        ]
        if rest:
            others = sum(counts[index] for index in rest)
            bars.append(Bar(name="other labels", value=others, style="base"))
        rows.append(Row(name=site.name, bars=tuple(bars), note=wording.count(sum(counts))))
    entries = [(f"c{place}", split.labels[index]) for place, index in enumerate(shown)]
    return rows, [*entries, *([("base", f"{len(rest)} other labels")] if rest else [])]


def _numbers(sites: Sites, rows: Sequence[Row]) -> Markup:
    labels = [bar.name for bar in rows[0].bars] if rows else []
    return table(
        "Rows at each site",
        ["Site", "Training", "Held out", *labels],
        [
            [
                site.name,
                wording.count(site.train_examples),
                wording.count(site.held_out_examples),
                *(wording.count(bar.value) for bar in (rows[index].bars if rows else ())),
            ]
            for index, site in enumerate(sites.sites)
        ],
    )
