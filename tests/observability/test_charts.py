"""Charts: round ticks, marks where the values are, well-formed SVG."""

from __future__ import annotations

import itertools
import math
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.observability.charts.axes import Scale, nice_ticks, shorten
from fedtune.observability.charts.columns import Column, Part, column_chart
from fedtune.observability.charts.lines import Line, line_chart
from fedtune.observability.charts.rows import Bar, Row, grouped_rows, stacked_rows

SVG = "{http://www.w3.org/2000/svg}"
values = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-9)


def number(value: float) -> str:
    return f"{value:.2f}"


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def attribute(element: ElementTree.Element, name: str) -> float:
    return float(element.attrib[name])


@given(values, values, st.integers(2, 12))
def test_ticks_are_round_evenly_spaced_and_cover_the_values(first: float, second: float, most: int) -> None:
    low, high = sorted((first, second))
    ticks = nice_ticks(low, high, most)
    assert len(ticks) >= 2
    step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - factor) for factor in (1, 2, 5, 10)) < 1e-6
    assert all(
        math.isclose(tick, ticks[0] + index * step, abs_tol=step * 1e-6) for index, tick in enumerate(ticks)
    )
    assert ticks[0] <= low + step * 1e-6
    assert ticks[-1] >= high - step * 1e-6
    assert len(ticks) <= most + 1


def test_a_scale_maps_its_ends_and_survives_a_single_value() -> None:
    scale = Scale(low=2.0, high=4.0, start=100.0, end=0.0)
    assert (scale(2.0), scale(3.0), scale(4.0)) == (100.0, 50.0, 0.0)
    assert Scale(low=2.0, high=2.0, start=100.0, end=0.0)(2.0) == 50.0


def lines(count: int) -> list[Line]:
    return [
        Line(name=f"site {index}", points=((0, 3.0 + index / 10), (1, 2.5 + index / 50)), style=f"c{index}")
        for index in range(count)
    ]


def chart(series: list[Line], **options: object) -> ElementTree.Element:
    arguments: dict[str, object] = {
        "width": 800.0,
        "height": 300.0,
        "label": "losses",
        "y_label": "nats",
        "format_": number,
        "end_labels": True,
    }
    return drawn(line_chart(series, **(arguments | options)))  # type: ignore[arg-type]


def test_every_point_is_drawn_inside_the_picture_and_higher_where_the_value_is_higher() -> None:
    svg = chart(lines(5))
    circles = [(attribute(c, "cx"), attribute(c, "cy")) for c in svg.iter(f"{SVG}circle")]
    assert len(circles) == 10
    assert all(0 <= x <= 800 and 0 <= y <= 300 for x, y in circles)
    first = [y for x, y in circles if x == min(x for x, _ in circles)]
    assert first == sorted(first, reverse=True)


def test_labels_at_line_ends_keep_apart_and_inside() -> None:
    svg = chart(lines(8))
    places = sorted(
        attribute(text, "y") for text in svg.iter(f"{SVG}text") if (text.text or "").startswith("site")
    )
    assert len(places) == 8
    assert all(later - earlier >= 14.9 for earlier, later in itertools.pairwise(places))
    assert places[-1] <= 300


def test_a_picture_names_itself_and_its_marks_for_those_who_do_not_see_it() -> None:
    svg = chart(lines(2))
    assert svg.attrib["role"] == "img"
    assert svg.attrib["aria-label"] == "losses"
    titles = [title.text for title in svg.iter(f"{SVG}title")]
    assert "site 1, round 0: 3.10" in titles


def test_a_hundred_rounds_have_ticks_that_do_not_touch() -> None:
    series = [
        Line(name="mean", points=tuple((round_, 3 - round_ / 100) for round_ in range(101)), style="mean")
    ]
    svg = chart(series, first_round="base", width=350.0, end_labels=False)
    ticks = sorted(
        attribute(text, "x") for text in svg.iter(f"{SVG}text") if text.attrib.get("text-anchor") == "middle"
        and (text.text or "").isdigit()
    )  # fmt: skip
    assert len(ticks) > 3
    assert all(later - earlier > 20 for earlier, later in itertools.pairwise(ticks))


def test_one_point_and_equal_values_can_be_drawn() -> None:
    chart([Line(name="a", points=((0, 2.0),), style="c0")])
    chart([Line(name="a", points=((0, 2.0), (1, 2.0)), style="c0"), Line(name="b", points=(), style="c1")])


@pytest.mark.parametrize("stacked", [True, False])
def test_column_heights_are_proportional_to_their_values(stacked: bool) -> None:
    columns = [
        Column(
            label=str(n),
            parts=(Part(name="a", value=float(n), style="c0"), Part(name="b", value=2.0 * n, style="c1")),
        )
        for n in range(1, 4)
    ]
    svg = drawn(
        column_chart(
            columns, width=400.0, height=230.0, label="x", y_label="s", format_=number, stacked=stacked
        )
    )
    heights = [attribute(rect, "height") for rect in svg.iter(f"{SVG}rect")]
    unit = heights[0]
    assert heights == pytest.approx([unit, 2 * unit, 2 * unit, 4 * unit, 3 * unit, 6 * unit], rel=1e-3)


def test_columns_of_nothing_can_be_drawn() -> None:
    column = Column(label="1", parts=(Part(name="a", value=0.0, style="c0"),))
    drawn(
        column_chart(
            [column], width=400.0, height=230.0, label="x", y_label="s", format_=number, stacked=True
        )
    )


@pytest.mark.parametrize("names_above", [True, False])
def test_grouped_bars_start_at_zero_and_a_loss_points_left(names_above: bool) -> None:
    pairs = {"Eye": (0.5, -0.25), "Ear": (None, 0.25)}
    rows = [
        Row(
            name=name,
            note="base 3.0",
            bars=(Bar(name="f", value=first, style="federated"), Bar(name="l", value=second, style="local")),
        )
        for name, (first, second) in pairs.items()
    ]
    svg = drawn(
        grouped_rows(rows, width=800.0, label="x", x_label="nats", format_=number, names_above=names_above)
    )
    zero = attribute(next(line for line in svg.iter(f"{SVG}line") if line.attrib["class"] == "zero"), "x1")
    bars = [(attribute(r, "x"), attribute(r, "width")) for r in svg.iter(f"{SVG}rect")]
    assert bars[0][0] == pytest.approx(zero, abs=0.01)
    assert bars[1][0] + bars[1][1] == pytest.approx(zero, abs=0.02)
    assert bars[0][1] == pytest.approx(2 * bars[1][1], rel=1e-3)
    assert "not measured" in [text.text for text in svg.iter(f"{SVG}text")]


@pytest.mark.parametrize("names_above", [True, False])
def test_stacked_bars_follow_each_other_and_end_at_their_sum(names_above: bool) -> None:
    bars = tuple(Bar(name=str(n), value=float(n), style="c0") for n in (10, 0, 30))
    rows = [
        Row(name="Eye", note="40", bars=bars),
        Row(name="Ear", bars=(Bar(name="a", value=20.0, style="c1"),)),
    ]
    svg = drawn(
        stacked_rows(rows, width=800.0, label="x", x_label="rows", format_=number, names_above=names_above)
    )
    (a, a_width), (b, b_width), (c, c_width) = (
        (attribute(r, "x"), attribute(r, "width")) for r in svg.iter(f"{SVG}rect")
    )
    assert b == pytest.approx(a + a_width, rel=1e-3)
    assert b_width == pytest.approx(3 * a_width, rel=1e-3)
    assert c == a
    assert c_width == pytest.approx(2 * a_width, rel=1e-3)


def test_a_long_name_is_shortened_in_the_picture_and_whole_in_its_tooltip() -> None:
    name = "Abnormality of the cardiovascular system, seen at birth"
    assert len(shorten(name)) == 34
    rows = [Row(name=name, bars=(Bar(name="f", value=0.5, style="federated"),))]
    svg = drawn(grouped_rows(rows, width=800.0, label="x", x_label="nats", format_=number, names_above=False))
    assert shorten(name) in [text.text for text in svg.iter(f"{SVG}text")]
    assert any(name in (title.text or "") for title in svg.iter(f"{SVG}title"))
