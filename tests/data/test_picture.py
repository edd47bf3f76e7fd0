from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.data.partition.picture import split_svg, split_text

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("neurology", "a & <b>")
LABELS = ("north", "south")
COUNTS = np.array([[30, 10], [0, 20]])


def blocks(svg: str) -> list[tuple[str, float, float]]:
    """(what it says, left edge, width) of each block of a bar."""
    rects = ET.fromstring(svg).iter(f"{SVG}rect")
    return [
        (str(rect.findtext(f"{SVG}title")), float(rect.attrib["x"]), float(rect.attrib["width"]))
        for rect in rects
        if rect.find(f"{SVG}title") is not None
    ]


def test_the_svg_has_a_block_for_each_site_and_label_in_proportion_to_its_rows() -> None:
    drawn = blocks(split_svg(NAMES, LABELS, COUNTS))
    assert [says for says, _, _ in drawn] == [
        "neurology, north: 30",
        "neurology, south: 10",
        "a & <b>, south: 20",
    ]
    widths = [width for _, _, width in drawn]
    assert np.array(widths) / widths[1] == pytest.approx([3, 1, 2], rel=1e-3)
    assert drawn[1][1] == pytest.approx(drawn[0][1] + widths[0], abs=0.02)


def test_the_svg_is_standalone() -> None:
    svg = split_svg(NAMES, LABELS, COUNTS)
    assert svg.startswith("<svg ")
    assert "href" not in svg
    assert "<script" not in svg
    texts = [text.text for text in ET.fromstring(svg).iter(f"{SVG}text")]
    assert texts == ["north", "south", "neurology", "40", "a & <b>", "20"]


def test_the_text_has_a_line_a_site_and_fills_in_proportion() -> None:
    first, second, legend = split_text(NAMES, LABELS, COUNTS, width=52).splitlines()
    assert first == "neurology " + "█" * 29 + "▓" * 10 + " 40"
    assert second == "a & <b>   " + "▓" * 20 + " " * 19 + " 20"
    assert legend == "█ north ▓ south"


def test_one_label_needs_no_legend() -> None:
    counts = np.array([[5], [0]])
    assert split_text(("a", "b"), ("rows",), counts, width=20) == "a " + "█" * 16 + " 5\nb" + " " * 18 + "0\n"
    assert "rows</text>" not in split_svg(("a", "b"), ("rows",), counts)


@settings(max_examples=50)
@given(
    rows=st.lists(st.lists(st.integers(0, 10**6), min_size=3, max_size=3), max_size=6),
    width=st.integers(1, 200),
)
def test_any_counts_can_be_drawn(rows: list[list[int]], width: int) -> None:
    counts = np.array(rows, dtype=np.int64).reshape(-1, 3)
    names = [f"client-{index}" for index in range(len(rows))]
    drawn = blocks(split_svg(names, "abc", counts))
    assert len(drawn) == np.count_nonzero(counts)
    box = ET.fromstring(split_svg(names, "abc", counts)).attrib["viewBox"].split()
    assert all(x >= 0 and x + wide <= float(box[2]) for _, x, wide in drawn)
    lines = split_text(names, "abc", counts, width=width).splitlines()[:-1]
    assert [int(line.split()[-1]) for line in lines] == counts.sum(axis=1).tolist()
