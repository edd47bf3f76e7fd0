"""Numbers as people read them, the same in the report, the table and the progress display."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "ABSENT",
    "STAGES",
    "about",
    "bytes_",
    "count",
    "listing",
    "loss",
    "mebibytes",
    "percent",
    "rounds_",
    "seconds",
    "signed",
]

ABSENT = "–"
"""Stands for what was not measured."""

STAGES = {
    "hello": "saying hello",
    "train": "training",
    "secagg": "secure aggregation",
    "evaluate": "evaluation",
    "preflight": "the preflight",
}
"""What a site was asked to do when it failed."""


def loss(value: float | None) -> str:
    """Nats with three digits that matter: 2.54, 0.089."""
    if value is None:
        return ABSENT
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference of losses with its sign, the minus being a real one."""
    return ABSENT if value is None else f"{value:+.2f}".replace("-", "−")


def count(value: float | None) -> str:
    """1,836."""
    return ABSENT if value is None else f"{value:,.0f}"


def percent(fraction: float | None) -> str:
    """91 %, and one digit more below 10 %."""
    if fraction is None:
        return ABSENT
    value = 100 * fraction
    return f"{value:.1f} %" if abs(value) < 10 and value != 0 else f"{value:.0f} %"


def seconds(value: float | None) -> str:
    """8.3 s, 4 min 5 s, 2 h 12 min."""
    if value is None:
        return ABSENT
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def about(value: float) -> str:
    """An estimate of seconds, no finer than it is known: about 20 s, about 3 min, about 2.5 h."""
    if value < 57.5:
        return f"about {max(5, 5 * round(value / 5))} s"
    if value < 5400:
        return f"about {max(1, round(value / 60))} min"
    return f"about {value / 3600:.1f} h"


def bytes_(value: float | None) -> str:
    """9.3 MiB."""
    if value is None:
        return ABSENT
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 99.5 else f"{value:.1f} {unit}"


def mebibytes(value: float | None) -> str:
    """Memory given in MiB: 1.6 GiB."""
    return ABSENT if value is None else bytes_(value * 2**20)


def rounds_(number: int) -> str:
    """1 round, 4 rounds."""
    return f"{number} round" if number == 1 else f"{number} rounds"


def listing(names: Sequence[str], most: int = 40) -> str:
    """A, B and C; of more than ``most``, the first and how many others."""
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1:,} others"]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)
