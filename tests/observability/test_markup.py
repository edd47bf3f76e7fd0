"""Text is escaped by its type."""

from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

from fedtune.observability.markup import Markup, el, join


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.values: list[str | None] = []
        self.content = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for _, value in attrs]

    def handle_data(self, data: str) -> None:
        self.content += data


@given(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r")),
)
def test_no_text_and_no_attribute_can_make_an_element(text: str, attribute: str) -> None:
    reader = Reader()
    reader.feed(el("p", text, title=attribute))
    reader.close()
    assert reader.tags == ["p"]
    assert reader.values == [attribute]
    assert reader.content == text


def test_elements_nest_and_only_strings_are_escaped() -> None:
    assert el("p", el("b", "a<b"), "&", 3, None, ["x", el("i", "y")]) == "<p><b>a&lt;b</b>&amp;3x<i>y</i></p>"
    assert isinstance(join(["<"]), Markup)
    assert join(["<"]) == "&lt;"


def test_attributes_are_dashed_left_out_or_bare() -> None:
    assert el("line", class_="a", stroke_width=1.23456789, x=None, y=False, hidden=True) == (
        '<line class="a" stroke-width="1.2346" hidden/>'
    )
