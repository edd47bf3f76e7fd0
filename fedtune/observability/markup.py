"""HTML and SVG as values: text is escaped by its type, so that forgetting it cannot be written.

``el("td", site_name)`` escapes; only another element goes in as it is.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

__all__ = ["Child", "Markup", "el", "join"]


class Markup(str):
    """Text that is markup already; only this module makes it."""

    __slots__ = ()


Child = Markup | str | int | Iterable["Child"] | None
"""What may stand inside an element; a plain string is text, None is nothing."""

_VOID = frozenset({"br", "link", "meta", "path", "line", "circle"})


def el(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Markup:
    """Return one element.

    Args:
        name: Tag.
        children: Elements and text, nested as one likes.
        attributes: A trailing underscore is dropped (``class_``), others become dashes (``stroke_width``);
            None and False leave the attribute out, True gives it without a value.
    """
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    inside = join(children)
    if name in _VOID and not inside:
        return Markup(f"<{name}{opening}/>")
    return Markup(f"<{name}{opening}>{inside}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Return elements and text one after the other, the text escaped."""
    return Markup("".join(_flat(child) for child in children))


def _flat(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, str | int):
        return html.escape(str(child))
    return join(child)


def _attribute(key: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'
