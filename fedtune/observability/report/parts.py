"""What the sections are made of: figures with their numbers, tables, legends, tiles."""

from __future__ import annotations

from collections.abc import Sequence

from fedtune.observability.markup import Child, Markup, el

__all__ = ["MOST_TABLE_ROWS", "NARROW", "SMALL", "WIDE", "figure", "legend", "section", "table", "tiles"]

WIDE = 820.0
"""Width of a picture across the page, in px."""

NARROW = 350.0
"""Width of the same picture drawn for a phone."""

MOST_TABLE_ROWS = 500
"""Rows of a table: a page of ten thousand sites would open in no browser with pleasure."""

SMALL = 400.0
"""Width of a picture of which two stand side by side."""


def section(title: str, *children: Child, lead: Child = None) -> Markup:
    """Return a section with its heading and an optional first paragraph."""
    return el(
        "section",
        el("h2", title),
        el("p", lead, class_="lead") if lead is not None else None,
        children,
    )


def figure(
    title: str,
    *pictures: Markup,
    note: Child = None,
    key: Markup | None = None,
    numbers: Markup | None = None,
) -> Markup:
    """Return a picture with its title, legend and note, and its numbers as a table one click away.

    Args:
        title: What is shown.
        pictures: One picture, or two: the wide one and the one for a phone.
        note: How to read it.
        key: Its legend.
        numbers: The same data as a table.
    """
    sizes = ("wide", "narrow") if len(pictures) == 2 else ("any",)
    return el(
        "figure",
        el("figcaption", el("h3", title), el("p", note, class_="note") if note is not None else None),
        key,
        (el("div", picture, class_=f"picture {size}") for size, picture in zip(sizes, pictures, strict=True)),
        el("details", el("summary", "The numbers"), numbers) if numbers is not None else None,
    )


def legend(entries: Sequence[tuple[str, str]], *, narrow_only: bool = False) -> Markup:
    """Return a legend of (style, name)."""
    return el(
        "ul",
        (el("li", el("span", class_=f"swatch {style}", aria_hidden="true"), name) for style, name in entries),
        class_="legend narrow" if narrow_only else "legend",
    )


def table(
    label: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[Child]],
    *,
    words: Sequence[int] = (0,),
    foot: Sequence[Child] | None = None,
) -> Markup:
    """Return a table that scrolls sideways where the page is too narrow for it.

    Args:
        label: Its name for those who do not see it.
        heads: Column headings.
        rows: Cells; the first of a row is its heading. Beyond `MOST_TABLE_ROWS` they are counted.
        words: Columns that hold words; the others hold numbers and are set to the right.
        foot: A last row, set apart.
    """
    classes = [None if index in words else "number" for index in range(len(heads))]
    cut = len(rows) - MOST_TABLE_ROWS
    more = f"and {cut:,} more: fedtune report RUN --json has all" if cut > 0 else None

    def row(cells: Sequence[Child]) -> Markup:
        first, *rest = cells
        return el(
            "tr",
            el("th", first, scope="row", class_=classes[0]),
            (el("td", cell, class_=class_) for cell, class_ in zip(rest, classes[1:], strict=True)),
        )

    headings = (
        el("th", head, scope="col", class_=class_) for head, class_ in zip(heads, classes, strict=True)
    )
    inside = el(
        "table",
        el("thead", el("tr", headings)),
        el("tbody", (row(cells) for cells in rows[:MOST_TABLE_ROWS]), _wide_row(more, len(heads))),
        el("tfoot", row(foot)) if foot is not None else None,
    )
    # Focusable, so that it scrolls by keyboard too.
    return el("div", inside, class_="scroll", role="region", aria_label=label, tabindex="0")


def _wide_row(content: str | None, columns: int) -> Markup | None:
    if content is None:
        return None
    return el("tr", el("th", content, scope="row", colspan=str(columns)))


def tiles(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """Return key figures: (name, value, remark)."""
    return el(
        "dl",
        (
            el("div", el("dt", name), el("dd", value), el("dd", remark, class_="remark"))
            for name, value, remark in entries
        ),
        class_="tiles",
    )
