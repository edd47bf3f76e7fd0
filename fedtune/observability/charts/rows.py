"""Horizontal bars, one row a site: side by side or stacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedtune.observability.charts.axes import (
    Format,
    Scale,
    frame,
    nice_ticks,
    shorten,
    text,
    text_width,
    tooltip,
)
from fedtune.observability.markup import Markup, el

__all__ = ["Bar", "Row", "grouped_rows", "stacked_rows"]

_BAR = 12.5
_STACK_BAR = 18.0
_GAP = 14.0
_NAME_AND_NOTE = 28.0


@dataclass(frozen=True, kw_only=True)
class Bar:
    """What, how much (None where it was not measured), and the CSS class that gives its colour."""

    name: str
    value: float | None
    style: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One site's bars, with its name and a note beside it."""

    name: str
    bars: tuple[Bar, ...]
    note: str = ""
    bold: bool = False


def grouped_rows(
    rows: Sequence[Row], *, width: float, label: str, x_label: str, format_: Format, names_above: bool
) -> Markup:
    """Draw each row's bars under one another, from a common zero; a bar below zero points left.

    Args:
        rows: At least one value in all.
        width: Of the picture; the height follows from the rows.
        label: What the picture shows, in a sentence, for those who do not see it.
        x_label: What the values are, with their unit.
        format_: Writes a value.
        names_above: Put names above the bars, where the picture is too narrow for a column of names.
    """
    values = [bar.value for row in rows for bar in row.bars if bar.value is not None]
    ticks = nice_ticks(min(0.0, *values), max(0.0, *values), most=4 if names_above else 7)
    left = 4.0 if names_above else _names_width(rows)
    head = 20.0 if names_above else 0.0
    x = Scale(low=ticks[0], high=ticks[-1], start=left, end=width - 46)
    # One bar alone is lower than its name and note.
    lowest = 0.0 if names_above else _NAME_AND_NOTE
    heights = [head + max(_BAR * len(row.bars), lowest) + _GAP for row in rows]
    height = 30 + sum(heights) + 4
    marks = _vertical_grid(ticks, x, height, format_, x_label)
    top = 34.0
    for row, row_height in zip(rows, heights, strict=True):
        marks += _names(row, top, row_height, left, above=names_above)
        for index, bar in enumerate(row.bars):
            y = top + head + (row_height - _GAP - head - _BAR * len(row.bars)) / 2 + index * _BAR
            if bar.value is None:
                marks.append(text(x(0) + 5, y + 9, "not measured", class_="value"))
                continue
            start, end = sorted((x(0), x(bar.value)))
            marks.append(
                el(
                    "rect",
                    tooltip(f"{row.name}, {bar.name}: {format_(bar.value)}"),
                    x=start,
                    y=y,
                    width=max(1.0, end - start),
                    height=_BAR - 2.5,
                    class_=f"bar {bar.style}",
                )
            )
            marks.append(text(max(end, x(0)) + 5, y + 9, format_(bar.value), class_="value"))
        top += row_height
    marks.append(el("line", x1=x(0), x2=x(0), y1=26, y2=height, class_="zero"))
    return frame(marks, width=width, height=height, label=label)


def stacked_rows(
    rows: Sequence[Row], *, width: float, label: str, x_label: str, format_: Format, names_above: bool
) -> Markup:
    """Draw each row's bars one after the other, so that the row's length is their sum.

    Arguments are those of ``grouped_rows``; values are not negative, and the note stands after the bar.
    """
    sums = [sum(bar.value or 0.0 for bar in row.bars) for row in rows]
    ticks = nice_ticks(0.0, max(sums) or 1.0, most=4 if names_above else 6)
    left = 4.0 if names_above else _names_width([Row(name=row.name, bars=()) for row in rows])
    head = 20.0 if names_above else 0.0
    notes = max((text_width(row.note, 11.5) for row in rows), default=0.0)
    x = Scale(low=0.0, high=max(sums) or 1.0, start=left, end=width - notes - 12)
    row_height = head + _STACK_BAR + 8
    height = 30 + row_height * len(rows) + 4
    ticks = [tick for tick in ticks if x(tick) <= width - 14]
    marks = _vertical_grid(ticks, x, height, format_, x_label)
    for index, (row, total) in enumerate(zip(rows, sums, strict=True)):
        top = 34 + index * row_height
        marks += _names(
            Row(name=row.name, bars=(), bold=row.bold), top, row_height - 8, left, above=names_above
        )
        reached = 0.0
        for bar in row.bars:
            start, end = x(reached), x(reached + (bar.value or 0.0))
            reached += bar.value or 0.0
            if end > start:
                marks.append(
                    el(
                        "rect",
                        tooltip(f"{row.name}, {bar.name}: {format_(bar.value or 0.0)}"),
                        x=start,
                        y=top + head,
                        width=max(0.5, end - start),
                        height=_STACK_BAR,
                        class_=f"bar {bar.style}",
                    )
                )
        marks.append(text(x(total) + 6, top + head + 13, row.note, class_="value"))
    return frame(marks, width=width, height=height, label=label)


def _names_width(rows: Sequence[Row]) -> float:
    return 14 + max(max(text_width(shorten(row.name), 13), text_width(row.note, 11.5)) for row in rows)


def _names(row: Row, top: float, height: float, left: float, *, above: bool) -> list[Markup]:
    class_ = f"name{' bold' if row.bold else ''}"
    if above:
        aside = el("tspan", f"  {row.note}", class_="note") if row.note else None
        return [el("text", shorten(row.name), aside, x=left, y=top + 13, class_=class_)]
    middle = top + (height - _GAP if row.bars else height) / 2 + 4
    if not row.note:
        return [text(left - 10, middle, shorten(row.name), anchor="end", class_=class_)]
    return [
        text(left - 10, middle - 6, shorten(row.name), anchor="end", class_=class_),
        text(left - 10, middle + 9, row.note, anchor="end", class_="note"),
    ]


def _vertical_grid(
    ticks: Sequence[float], x: Scale, height: float, format_: Format, label: str
) -> list[Markup]:
    marks = [text(x.start, 9, label, class_="axis")]
    for tick in ticks:
        marks.append(el("line", x1=x(tick), x2=x(tick), y1=28, y2=height, class_="grid"))
        marks.append(text(x(tick), 24, format_(tick), anchor="middle"))
    return marks
