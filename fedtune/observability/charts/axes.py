"""Scales, ticks, and the frame that every chart stands in.

Coordinates are SVG user units, which the page shows about one to one: a font size of 12 is some 12 px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedtune.observability.markup import Child, Markup, el

__all__ = [
    "Format",
    "Scale",
    "frame",
    "horizontal_grid",
    "nice_ticks",
    "shorten",
    "text",
    "text_width",
    "tooltip",
]

Format = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear map from values to coordinates.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``.
        start: Coordinate of ``low``.
        end: Coordinate of ``high``; smaller than ``start`` where the axis points up.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value; the middle where all values are one."""
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return evenly spaced round numbers, the first not above ``low``, the last not below ``high``.

    Args:
        low: Smallest value shown.
        high: Largest value shown.
        most: About how many ticks at most, at least 2.

    Returns:
        At least two ticks, each a multiple of 1, 2 or 5 times a power of ten.
    """
    if not high > low:
        width = abs(low) * 0.1 or 1.0
        low, high = low - width / 2, high + width / 2
    rough = (high - low) / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, digits) for index in range(first, last + 1)]


def text_width(content: str, size: float = 12) -> float:
    """Estimate the width of a text in a sans-serif of this size: a little more than it usually is."""
    return len(content) * size * 0.56


def shorten(name: str, most: int = 34) -> str:
    """Cut a name that would take the room of the picture; tooltips and tables have it whole."""
    return name if len(name) <= most else f"{name[: most - 1].rstrip()}…"


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str = "tick") -> Markup:
    """Return a text with its baseline at (x, y)."""
    return el("text", content, x=x, y=y, text_anchor=None if anchor == "start" else anchor, class_=class_)


def tooltip(content: str) -> Markup:
    """Return the title that a browser shows on hovering over its parent."""
    return el("title", content)


def horizontal_grid(
    ticks: Sequence[float], scale: Scale, *, left: float, right: float, format_: Format, label: str
) -> list[Markup]:
    """Return grid lines with their values to the left, and what they measure above them."""
    top = min(scale(ticks[0]), scale(ticks[-1]))
    marks = [text(0, top - 14, label, class_="axis")]
    for tick in ticks:
        y = scale(tick)
        marks.append(el("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        marks.append(text(left - 8, y + 4, format_(tick), anchor="end"))
    return marks


def frame(*marks: Child, width: float, height: float, label: str) -> Markup:
    """Return the SVG element: an image with a name for those who do not see it."""
    return el(
        "svg",
        *marks,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=label,
        xmlns="http://www.w3.org/2000/svg",
    )
