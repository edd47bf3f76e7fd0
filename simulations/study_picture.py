"""The aggregation study in one picture: how much each method loses or gains against a reference."""

from __future__ import annotations

import statistics

from study_tables import Results, differences, interval

from fedtune.observability.charts.axes import Scale, frame, nice_ticks, text, text_width, tooltip
from fedtune.observability.markup import Markup, el

__all__ = ["picture"]

_STYLES = {"0.1": "local", "0.5": "federated", "iid": "centralized"}
_NAMES = {"0.1": "Dirichlet 0.1", "0.5": "Dirichlet 0.5", "iid": "IID"}
_STYLE = (
    "<style>svg { background: #fff; font-family: sans-serif; } text { fill: #223; font-size: 13px; } "
    "text.tick, text.axis { fill: #566; font-size: 11px; } .grid { stroke: #ddd; } .zero { stroke: #566; } "
    ".local { fill: #d08a3c; } .federated { fill: #14706c; } .centralized { fill: #7e93b8; } "
    ".run { fill-opacity: 0.65; } .mean { fill: #223; } .interval { stroke: #223; stroke-width: 2; }</style>"
)
"""The report's colours, for a picture that stands alone."""
_WIDTH, _LEFT, _RIGHT, _TOP, _ROW = 820.0, 110.0, 100.0, 74.0, 34.0


def picture(results: Results, reference: str = "fedavg") -> str:
    """Return an SVG: a line for each method, a dot for each run, and the mean with its 95 % interval."""
    methods = [name for name in dict.fromkeys(key.rpartition("/")[2] for key in results) if name != reference]
    paired = {name: differences(results, name, reference) for name in methods}
    shown = {name: found for name, found in paired.items() if found}
    every = [value for found in shown.values() for _, values, _ in found for value in values]
    ticks = nice_ticks(min([0.0, *every]), max([0.0, *every]), 9)
    x = Scale(low=ticks[0], high=ticks[-1], start=_LEFT, end=_WIDTH - _RIGHT)
    height = _TOP + _ROW * len(shown) + 12
    drawn = str(
        frame(
            text(12, 20, f"Held-out loss less that of {reference}, nats per response token: left is better"),
            _legend(),
            (_tick(tick, x, height) for tick in ticks),
            (
                _line(name, found, x, _TOP + _ROW * (row + 0.5))
                for row, (name, found) in enumerate(shown.items())
            ),
            width=_WIDTH,
            height=height,
            label=f"Difference in held-out loss to {reference} of every method: each run and the mean",
        )
    )
    opening, mark, rest = drawn.partition(">")
    return f"{opening}{mark}{_STYLE}{rest}"


def _legend() -> list[Markup]:
    marks, place = [], 16.0
    for split, style in _STYLES.items():
        marks += [
            el("circle", cx=place, cy=38, r=4, class_=f"run {style}"),
            text(place + 9, 42, _NAMES[split], class_="axis"),
        ]
        place += 28 + text_width(_NAMES[split], 11)
    what = "mean over all runs, with its 95 % interval"
    return [
        *marks,
        el("circle", cx=place, cy=38, r=5, class_="mean"),
        text(place + 9, 42, what, class_="axis"),
    ]


def _tick(tick: float, x: Scale, height: float) -> Markup:
    return el(
        "g",
        el(
            "line", x1=x(tick), x2=x(tick), y1=_TOP - 4, y2=height - 8, class_="zero" if tick == 0 else "grid"
        ),
        text(x(tick), _TOP - 10, f"{tick:+.2f}" if tick else "0", anchor="middle"),
    )


def _line(name: str, found: list[tuple[str, list[float], float]], x: Scale, y: float) -> Markup:
    values = [value for _, each, _ in found for value in each]
    mean, half = statistics.fmean(values), interval(values) or 0.0
    return el(
        "g",
        tooltip(f"{name}: {mean:+.3f} ± {half:.3f} in {len(values)} runs"),
        text(12, y + 4, name),
        (
            el(
                "circle",
                cx=x(value),
                cy=y - 6 + 6 * list(_STYLES).index(split),
                r=3,
                class_=f"run {_STYLES[split]}",
            )
            for split, each, _ in found
            for value in each
        ),
        el("line", x1=x(mean - half), x2=x(mean + half), y1=y, y2=y, class_="interval"),
        el("circle", cx=x(mean), cy=y, r=5, class_="mean"),
        text(_WIDTH - _RIGHT + 14, y + 4, f"{mean:+.3f} ± {half:.3f}", class_="axis"),
    )
