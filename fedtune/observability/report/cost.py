"""What it cost: time, traffic and memory by round, the aggregation error, and who failed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedtune.observability import wording
from fedtune.observability.charts.axes import Format
from fedtune.observability.charts.columns import Column, Part, column_chart
from fedtune.observability.markup import Child, Markup, el
from fedtune.observability.report.parts import SMALL, figure, legend, section, table

__all__ = ["cost", "failures"]

_TIME = {
    "training_seconds": ("federated", "training"),
    "evaluation_seconds": ("centralized", "evaluation"),
    "other_seconds": ("base", "everything else"),
}
_LONG = 12
"""A table of more rounds than this starts folded."""


def cost(summary: Mapping[str, Any]) -> Markup | None:
    """Return the four small pictures and the table of rounds; None before the first round."""
    rows = summary["round_table"]
    trained = [row for row in rows if row["clients"]]
    if not trained:
        return None
    pictures = el(
        "div",
        _time(rows, summary["overhead_fraction"]),
        _traffic(trained),
        _error(trained),
        _memory(trained),
        class_="pair",
    )
    rounds = _table(rows)
    if len(rows) > _LONG:
        rounds = el("details", el("summary", f"All {len(rows)} rounds"), rounds)
    return section("What it cost", pictures, el("h3", "Round by round"), rounds)


def _chart(
    title: str,
    columns: Sequence[Column],
    *,
    unit: str,
    format_: Format,
    note: Child = None,
    stacked: bool = True,
    key: Markup | None = None,
) -> Markup:
    picture = column_chart(
        columns,
        width=SMALL,
        height=230,
        label=f"Columns: {title.lower()}, {unit}. The table of rounds below has the numbers.",
        y_label=unit,
        format_=format_,
        stacked=stacked,
    )
    return figure(title, picture, note=note, key=key)


def _time(rows: Sequence[Mapping[str, Any]], overhead: float | None) -> Markup:
    columns = [
        Column(
            label="base" if row["round"] == 0 else str(row["round"]),
            parts=tuple(Part(name=name, value=row[key], style=style) for key, (style, name) in _TIME.items()),
        )
        for row in rows
    ]
    note = None
    if overhead is not None:
        share = wording.percent(overhead)
        note = f"After loading, {share} of the time went into neither training nor evaluation."
    return _chart(
        "Time",
        columns,
        unit="seconds",
        format_=lambda value: f"{value:.3g}",
        note=note,
        key=legend(list(_TIME.values())),
    )


def _traffic(rows: Sequence[Mapping[str, Any]]) -> Markup:
    columns = [
        Column(
            label=str(row["round"]),
            parts=(
                Part(name="sites to server", value=row["uplink_bytes"] / 2**20, style="federated"),
                Part(name="server to sites", value=row["downlink_bytes"] / 2**20, style="base"),
            ),
        )
        for row in rows
    ]
    total = sum(row["uplink_bytes"] + row["downlink_bytes"] for row in rows)
    return _chart(
        "Traffic",
        columns,
        unit="MiB, all sites together",
        format_=lambda value: f"{value:.3g}",
        note=f"{wording.bytes_(total)} in all. Only adapters travel.",
        stacked=False,
        key=legend([("federated", "sites to server"), ("base", "server to sites")]),
    )


def _error(rows: Sequence[Mapping[str, Any]]) -> Markup | None:
    measured = [row for row in rows if row["aggregation_error"] is not None]
    if not measured:
        return None
    columns = [
        Column(
            label=str(row["round"]),
            parts=(Part(name="aggregation error", value=row["aggregation_error"], style="federated"),),
        )
        for row in measured
    ]
    exact = all(row["exact"] for row in measured)
    note = (
        "This method averages exactly; what is left is rounding."
        if exact
        else "How far the aggregate is from the mean of what the sites learned: averaging A and B apart is "
        "not averaging their product."
    )
    return _chart(
        "Aggregation error",
        columns,
        unit="relative to the mean update",
        format_=lambda value: f"{value:.2g}",
        note=note,
    )


def _memory(rows: Sequence[Mapping[str, Any]]) -> Markup:
    columns = [
        Column(
            label=str(row["round"]),
            parts=(Part(name="peak memory", value=(row["peak_memory_mib"] or 0) / 1024, style="federated"),),
        )
        for row in rows
    ]
    return _chart(
        "Memory",
        columns,
        unit="GiB, highest peak of a training process",
        format_=lambda value: f"{value:.2g}",
        note="A process's peak never falls, so neither do the columns.",
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    own = any(row["personal_loss"] is not None for row in rows)
    late = any(row["staleness"] for row in rows)
    virtual = any(row["virtual_seconds"] is not None for row in rows)

    def cells(row: Mapping[str, Any]) -> list[Child]:
        seconds = row["training_seconds"] + row["evaluation_seconds"] + row["other_seconds"]
        error = row["aggregation_error"]
        return [
            "Base" if row["round"] == 0 else str(row["round"]),
            wording.count(len(row["clients"])) if row["round"] else wording.ABSENT,
            wording.listing(row["failed"]) or wording.ABSENT,
            "\u00a0and\u00a0".join(row["factors"]) or wording.ABSENT,
            wording.loss(row["held_out_loss"]),
            *([wording.loss(row["personal_loss"])] if own else []),
            f"{wording.loss(row['loss_before'])} → {wording.loss(row['loss_after'])}"
            if row["clients"]
            else wording.ABSENT,
            wording.ABSENT if error is None else f"{error:.2g}",
            wording.bytes_(row["uplink_bytes"]) if row["clients"] else wording.ABSENT,
            wording.count(row["tokens_per_second"]),
            wording.seconds(seconds),
            *([", ".join(map(str, row["staleness"])) or wording.ABSENT] if late else []),
            *([wording.seconds(row["virtual_seconds"])] if virtual else []),
        ]

    return table(
        "All rounds",
        [
            "Round", "Sites counted", "Failed", "Factors", "Held-out loss", *(["Own models"] if own else []),
            "Training loss", "Aggregation error", "Sent up", "Tokens/s", "Time",
            *(["Staleness"] if late else []), *(["Virtual time"] if virtual else []),
        ],
        [cells(row) for row in rows],
        words=(0, 2, 3),
    )  # fmt: skip


def failures(summary: Mapping[str, Any]) -> Markup | None:
    """Return every client that failed, with its reason; None where none did."""
    failed = summary["failures"]
    if not failed:
        return None
    names = wording.listing(list(dict.fromkeys(failure["client"] for failure in failed)))
    return section(
        "What failed",
        table(
            "Failures",
            ["Site", "Round", "In", "Code", "Reason"],
            [
                [f["client"], str(f["round"]), wording.STAGES[f["stage"]], el("code", f["code"]), f["reason"]]
                for f in failed
            ],
            words=(0, 2, 3, 4),
        ),
        lead=f"{names}: what failed was left out of its round and counts for nothing.",
    )
