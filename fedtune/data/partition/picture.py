"""The split as a picture: one bar a site, stacked by label, for a page (SVG) or a terminal (text)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

__all__ = ["split_svg", "split_text"]

# Paul Tol's "muted" scheme and two greys: told apart by colour-blind readers, and in this order in print.
_COLOURS = (
    "#332288",
    "#88ccee",
    "#44aa99",
    "#117733",
    "#999933",
    "#ddcc77",
    "#cc6677",
    "#882255",
    "#aa4499",
    "#6699cc",
    "#777777",
    "#bbbbbb",
)
_ROW, _BAR, _WIDTH, _CHARACTER = 24, 16, 460, 7  # pixels
_FILLS = "█▓▒░"


def split_svg(names: Sequence[str], labels: Sequence[str], counts: np.ndarray) -> str:
    """Draw the split as a standalone SVG document that needs no font, script or network.

    Args:
        names: The sites, top to bottom.
        labels: The labels, in the order in which they are stacked.
        counts: Rows of each label at each site, shape (sites, labels).

    Returns:
        The text of the SVG. Each block tells its site, label and rows when pointed at.
    """
    totals = counts.sum(axis=1)
    scale = _WIDTH / max(1, int(totals.max(initial=0)))
    left = 16 + _CHARACTER * max((len(name) for name in names), default=0)
    width = left + _WIDTH + 80
    legend = _legend(labels, width) if len(labels) > 1 else []
    top = 8 + 20 * (1 + max((row for row, _, _, _ in legend), default=-1))
    height = top + _ROW * len(names) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" font-family="sans-serif" font-size="12" fill="currentColor">',
        "<title>Rows of each label at each site</title>",
    ]
    for row, x, colour, label in legend:
        y = 8 + 20 * row
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{y + 10}">{escape(label)}</text>')
    for site, name in enumerate(names):
        y = top + _ROW * site
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        x_exact = float(left)
        for index, label in enumerate(labels):
            block = float(counts[site, index]) * scale
            if block > 0:
                colour = _COLOURS[index % len(_COLOURS)]
                says = escape(f"{name}, {label}: {int(counts[site, index])}")
                parts.append(
                    f'<rect x="{x_exact:.2f}" y="{y}" width="{block:.2f}" height="{_BAR}" fill="{colour}">'
                    f"<title>{says}</title></rect>"
                )
            x_exact += block
        parts.append(f'<text x="{x_exact + 6:.2f}" y="{y + 12}">{int(totals[site])}</text>')
    return "\n".join([*parts, "</svg>\n"])


def _legend(labels: Sequence[str], width: int) -> list[tuple[int, int, str, str]]:
    """(line, x, colour, label) of each entry, wrapped to the picture's width."""
    entries = []
    line, x = 0, 8
    for index, label in enumerate(labels):
        needed = 33 + _CHARACTER * len(label)
        if x > 8 and x + needed > width:
            line, x = line + 1, 8
        entries.append((line, x, _COLOURS[index % len(_COLOURS)], label))
        x += needed
    return entries


def split_text(names: Sequence[str], labels: Sequence[str], counts: np.ndarray, *, width: int = 80) -> str:
    """Draw the split as lines of text for a terminal.

    Args:
        names: The sites, top to bottom.
        labels: The labels, in the order in which they are stacked.
        counts: Rows of each label at each site, shape (sites, labels).
        width: Columns of the terminal; a bar takes what names and numbers leave.

    Returns:
        One line a site (name, bar, rows), each ending with the number of its labels' rows, and a line that
        names the fills when there are several labels. Fills repeat after four labels.
    """
    totals = counts.sum(axis=1)
    longest = max((len(name) for name in names), default=0)
    numbers = max((len(str(int(total))) for total in totals), default=1)
    room = max(8, width - longest - numbers - 2)
    largest = max(1, int(totals.max(initial=0)))
    lines = []
    for site, name in enumerate(names):
        # Block borders are rounded, not blocks, so that a bar is as long as its total whatever its parts.
        borders = np.rint(np.cumsum(counts[site]) * (room / largest)).astype(int)
        blocks = np.diff(borders, prepend=0)
        bar = "".join(_FILLS[index % len(_FILLS)] * int(size) for index, size in enumerate(blocks))
        lines.append(f"{name:<{longest}} {bar:<{room}} {int(totals[site]):>{numbers}}".rstrip())
    if len(labels) > 1:
        lines.append(" ".join(f"{_FILLS[index % len(_FILLS)]} {label}" for index, label in enumerate(labels)))
    return "\n".join(lines) + "\n"
