"""Lines over rounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedtune.observability.charts.axes import (
    Format,
    Scale,
    frame,
    horizontal_grid,
    nice_ticks,
    shorten,
    text,
    text_width,
    tooltip,
)
from fedtune.observability.markup import Markup, el

__all__ = ["Line", "line_chart"]

_LABEL_GAP = 15.0
_MOST_MARKERS = 16


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series.

    Attributes:
        name: Shown at its end and in tooltips.
        points: (round, value), rounds ascending; a round that was not measured is left out.
        style: CSS class that gives the colour.
        bold: Drawn thick, above the others.
        labelled: Named at its end where there is room.
    """

    name: str
    points: tuple[tuple[int, float], ...]
    style: str
    bold: bool = False
    labelled: bool = True


def line_chart(
    lines: Sequence[Line],
    *,
    width: float,
    height: float,
    label: str,
    y_label: str,
    format_: Format,
    end_labels: bool,
    from_zero: bool = False,
    first_round: str | None = None,
) -> Markup:
    """Draw lines over rounds.

    Args:
        lines: At least one point in all.
        width: Of the picture.
        height: Of the picture.
        label: What the picture shows, in a sentence, for those who do not see it.
        y_label: What the values are, with their unit.
        format_: Writes a value.
        end_labels: Name each line at its right end; otherwise the caller gives a legend.
        from_zero: Start the value axis at zero.
        first_round: Stands in place of the number 0 under round 0.
    """
    lines = sorted((line for line in lines if line.points), key=lambda line: line.bold)
    values = [value for line in lines for _, value in line.points]
    rounds = sorted({round_ for line in lines for round_, _ in line.points})
    ticks = nice_ticks(0 if from_zero else min(values), max(values))
    left = 10 + max(text_width(format_(tick)) for tick in ticks)
    names = [line.name for line in lines if line.labelled] if end_labels else []
    right = width - (12 + max((text_width(shorten(name), 13) for name in names), default=0) if names else 10)
    x = Scale(low=rounds[0], high=rounds[-1], start=left + 8, end=right - 8)
    y = Scale(low=ticks[0], high=ticks[-1], start=height - 40, end=28)
    return frame(
        horizontal_grid(ticks, y, left=left, right=right, format_=format_, label=y_label),
        _round_axis(rounds, x, height, first_round),
        (_draw(line, x, y, format_) for line in lines),
        _end_labels([line for line in lines if line.labelled], x, y, height) if end_labels else None,
        width=width,
        height=height,
        label=label,
    )


def _round_axis(rounds: Sequence[int], x: Scale, height: float, first: str | None) -> list[Markup]:
    names = {round_: first if round_ == 0 and first else str(round_) for round_ in rounds}
    room = max(1.0, abs(x.end - x.start) / (max(text_width(name) for name in names.values()) + 14))
    step = max(1, -(-len(rounds) // int(room)))  # ceiling
    marks = [text(x(round_), height - 20, names[round_], anchor="middle") for round_ in rounds[::step]]
    return [*marks, text((x.start + x.end) / 2, height - 3, "round", anchor="middle", class_="axis")]


def _draw(line: Line, x: Scale, y: Scale, format_: Format) -> Markup:
    path = " ".join(
        f"{'M' if index == 0 else 'L'}{x(round_):.1f} {y(value):.1f}"
        for index, (round_, value) in enumerate(line.points)
    )
    few = len(line.points) <= _MOST_MARKERS
    return el(
        "g",
        tooltip(f"{line.name}: {format_(line.points[0][1])} → {format_(line.points[-1][1])}"),
        el("path", d=path, class_="reach"),
        el("path", d=path, class_="line"),
        (
            el(
                "circle",
                tooltip(f"{line.name}, round {round_}: {format_(value)}"),
                cx=x(round_),
                cy=y(value),
                r=(4.5 if line.bold else 3.0) if few else 1.0,
            )
            for round_, value in line.points
        ),
        class_=f"series {line.style}{' bold' if line.bold else ''}",
    )


def _end_labels(lines: Sequence[Line], x: Scale, y: Scale, height: float) -> list[Markup]:
    """Name lines at their ends, pushed apart where they would overlap."""
    ordered = sorted(lines, key=lambda line: y(line.points[-1][1]))
    places: list[float] = []
    for line in ordered:
        wanted = y(line.points[-1][1]) + 4
        places.append(max(wanted, places[-1] + _LABEL_GAP) if places else wanted)
    # Pushed below the picture's end, the whole pile moves up.
    overflow = max(0.0, (places[-1] if places else 0.0) - (height - 30))
    for index in reversed(range(len(places))):
        if overflow <= 0:
            break
        limit = places[index + 1] - _LABEL_GAP if index + 1 < len(places) else places[index] - overflow
        places[index] = min(places[index], limit)
    return [
        text(x.end + 12, place, shorten(line.name), class_=f"name {line.style}{' bold' if line.bold else ''}")
        for line, place in zip(ordered, places, strict=True)
    ]
