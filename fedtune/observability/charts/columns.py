"""Columns over rounds, stacked or side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedtune.observability.charts.axes import (
    Format,
    Scale,
    frame,
    horizontal_grid,
    nice_ticks,
    text,
    text_width,
    tooltip,
)
from fedtune.observability.markup import Markup, el

__all__ = ["Column", "Part", "column_chart"]


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part of a column: what, how much (not negative), and the CSS class that gives its colour."""

    name: str
    value: float
    style: str


@dataclass(frozen=True, kw_only=True)
class Column:
    """One round's column."""

    label: str
    parts: tuple[Part, ...]


def column_chart(
    columns: Sequence[Column],
    *,
    width: float,
    height: float,
    label: str,
    y_label: str,
    format_: Format,
    stacked: bool,
) -> Markup:
    """Draw one column a round, its parts on top of each other or side by side.

    Args:
        columns: At least one; all with the same parts.
        width: Of the picture.
        height: Of the picture.
        label: What the picture shows, in a sentence, for those who do not see it.
        y_label: What the values are, with their unit.
        format_: Writes a value.
        stacked: On top of each other, so that the column is their sum.
    """
    sizes = [sum(part.value for part in column.parts) for column in columns]
    if not stacked:
        sizes = [part.value for column in columns for part in column.parts]
    ticks = nice_ticks(0.0, max(sizes) or 1.0, most=5)
    left = 10 + max(text_width(format_(tick)) for tick in ticks)
    y = Scale(low=ticks[0], high=ticks[-1], start=height - 40, end=28)
    slot = (width - left - 6) / len(columns)
    bar = min(44.0, slot * 0.62)
    marks = horizontal_grid(ticks, y, left=left, right=width, format_=format_, label=y_label)
    every = max(1, round((max(text_width(column.label) for column in columns) + 10) / slot + 0.49))
    for index, column in enumerate(columns):
        middle = left + 3 + slot * (index + 0.5)
        marks += (
            _stack(column, y, middle, bar, format_) if stacked else _beside(column, y, middle, bar, format_)
        )
        if index % every == 0:
            marks.append(text(middle, height - 20, column.label, anchor="middle"))
    marks.append(text((left + width) / 2, height - 3, "round", anchor="middle", class_="axis"))
    return frame(marks, width=width, height=height, label=label)


def _stack(column: Column, y: Scale, middle: float, bar: float, format_: Format) -> list[Markup]:
    marks, reached = [], 0.0
    for part in column.parts:
        top, bottom = y(reached + part.value), y(reached)
        reached += part.value
        says = _says(column, part, format_)
        marks.append(_rect(says, part, x=middle - bar / 2, y=top, width=bar, height=bottom - top))
    return marks


def _beside(column: Column, y: Scale, middle: float, bar: float, format_: Format) -> list[Markup]:
    each = bar / len(column.parts)
    marks = []
    for index, part in enumerate(column.parts):
        x, top = middle - bar / 2 + index * each, y(part.value)
        says = _says(column, part, format_)
        marks.append(_rect(says, part, x=x, y=top, width=each - 1, height=y(0) - top))
    return marks


def _says(column: Column, part: Part, format_: Format) -> str:
    return f"round {column.label}, {part.name}: {format_(part.value)}"


def _rect(says: str, part: Part, *, x: float, y: float, width: float, height: float) -> Markup:
    return el(
        "rect",
        tooltip(says),
        x=x,
        y=y,
        width=max(0.5, width),
        height=max(0.0, height),
        class_=f"bar {part.style}",
    )
