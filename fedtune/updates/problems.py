"""How problems of an update are worded: what a stranger sent is shown short without control characters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from fedtune.errors import Problem

__all__ = ["capped", "not_finite", "shown"]

MAX_LISTED_PER_CODE = 20
"""An update has hundreds of tensors and a diverged one is wrong in all of them: the rest is counted."""

MAX_SHOWN_CHARACTERS = 160


def shown(value: object) -> str:
    """Return a value's ``repr``, shortened in the middle: safe to print to a terminal or a log.

    ``repr`` escapes control characters, so that a tensor's name cannot rewrite the reader's screen.
    """
    if isinstance(value, str | bytes) and len(value) > 4 * MAX_SHOWN_CHARACTERS:
        half = 2 * MAX_SHOWN_CHARACTERS
        text = repr(value[:half]) + repr(value[-half:])
    else:
        try:
            text = repr(value)
        except ValueError:  # an integer of more than 4,300 digits
            return f"a {type(value).__name__} too long to show"
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return text
    half = MAX_SHOWN_CHARACTERS // 2
    return f"{text[:half]}…{text[-half:]}"


def not_finite(name: str, tensor: np.ndarray[Any, Any], where: str) -> Problem | None:
    """Return FT504 with the number of values that are NaN or infinite and the first of them, or None."""
    finite = np.isfinite(tensor)
    if finite.all():
        return None
    first = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), tensor.shape))
    bad = tensor.size - int(np.count_nonzero(finite))
    return Problem(
        code="FT504",
        what=f"{bad:,} of {tensor.size:,} values are not finite, the first is {tensor[first]} at {first}",
        where=f"{where}, tensor {shown(name)}",
        fix="lower training.learning_rate, or set training.max_gradient_norm; see the losses of this client",
    )


def capped(problems: Iterable[Problem]) -> list[Problem]:
    """Keep the first problems of each code; one more problem counts those that were left out."""
    kept: list[Problem] = []
    seen: Counter[str] = Counter()
    last: dict[str, Problem] = {}
    for problem in problems:
        seen[problem.code] += 1
        last[problem.code] = problem
        if seen[problem.code] <= MAX_LISTED_PER_CODE:
            kept.append(problem)
    for code, count in seen.items():
        if count > MAX_LISTED_PER_CODE:
            kept.append(
                Problem(
                    code=code,
                    what=f"the same is wrong with {count - MAX_LISTED_PER_CODE:,} more tensors",
                    where=f"the last of them: {last[code].where}",
                    fix=last[code].fix,
                )
            )
    return kept
