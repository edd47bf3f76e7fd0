"""Means and sums that do not hide a missing value."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["mean", "total"]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean; None if there is no value or one of them is None."""
    numbers = list(values)
    known = [number for number in numbers if number is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(numbers) else None


def total(values: Iterable[int | None]) -> int | None:
    """Return the sum, 0 of no values; None if one of them is None."""
    numbers = list(values)
    return None if None in numbers else sum(number for number in numbers if number is not None)
