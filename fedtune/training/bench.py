"""Local training beside the plain loop, and beside the processor's best matrix product.

Each side runs in a process of its own, for its memory; they take the same steps in turn, so that whatever
else the machine does meets both. A speed counts the tokens of the rows, padding left out, and prefixes that
rows share once for each row: what a side saves is its gain.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from fedtune.training.bench_rate import fraction_of_matmul_rate

__all__ = ["PREFIX", "Figures", "Side", "bench_local", "prefixed"]

Figures = dict[str, float | list[float]]
"""Key to a median or another number, or to [least, most]."""

PREFIX = "local."
ROWS = (16, 4)
"""Rows of a step; the first is what the keys without a number are of."""


def bench_local(*, repeats: int, on_part: Callable[[str], None]) -> Figures:
    """Measure; the keys are an interface.

    Args:
        repeats: Steps that are measured of each side; one more goes before, which does not count.
        on_part: Told of what comes next.
    """
    figures: Figures = {}
    for rows in ROWS:
        on_part(f"{repeats} steps of {rows} rows, plain and local in turn")
        figures |= _compared(rows, repeats)
    on_part("the arithmetic rate of a step and of matrix products")
    figures |= fraction_of_matmul_rate(repeats)
    return prefixed(figures, PREFIX)


def prefixed(figures: Figures, prefix: str) -> Figures:
    """Return every figure under its key, and under its key with the bench's name before it."""
    return figures | {prefix + key: value for key, value in figures.items()}


def _compared(rows: int, repeats: int) -> Figures:
    steps: list[dict[str, dict[str, float]]] = []
    with ExitStack() as stack:
        sides = {
            name: stack.enter_context(Side("fedtune.training.bench_worker", name, str(rows)))
            for name in ("plain", "local")
        }
        for number in range(repeats + 1):
            order = list(sides) if number % 2 else list(reversed(sides))
            steps.append({name: sides[name].ask(str(number)) for name in order})
    measured, last = steps[1:], steps[-1]
    ratios = [step["plain"]["seconds"] / step["local"]["seconds"] for step in measured]
    mark = "" if rows == ROWS[0] else f"_{rows}"
    work = {name: last[name]["peak_mib"] - sides[name].hello["base_mib"] for name in sides}
    figures: Figures = {
        f"speedup_over_plain{mark}": statistics.median(ratios),
        f"speedup_over_plain{mark}_spread": [min(ratios), max(ratios)],
        f"memory_over_plain{mark}": last["local"]["peak_mib"] / last["plain"]["peak_mib"],
        f"work_memory_over_plain{mark}": work["local"] / work["plain"],
    }
    for name in ("local", "plain"):
        rates = [step[name]["tokens"] / step[name]["seconds"] for step in measured]
        figures |= {
            f"{name}_tokens_per_second{mark}": statistics.median(rates),
            f"{name}_tokens_per_second{mark}_spread": [min(rates), max(rates)],
            f"{name}_peak_mib{mark}": last[name]["peak_mib"],
            f"{name}_work_mib{mark}": work[name],
            f"{name}_loss{mark}": last[name]["loss"],
        }
    return figures


class Side:
    """A process that answers lines with JSON objects.

    Args:
        arguments: Module to run, and its arguments.

    Attributes:
        hello: What it printed first.
    """

    def __init__(self, *arguments: str) -> None:
        command: Sequence[str] = (sys.executable, "-m", *arguments)
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.hello = self._read()

    def ask(self, line: str) -> dict[str, float]:
        """Send a line and return the answer.

        Raises:
            RuntimeError: The process ended; what it said is on stderr.
        """
        assert self._process.stdin is not None  # noqa: S101 - it was asked for
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._read()

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for
        line = self._process.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError(f"a measured process ended with {self._process.returncode}")
        answer: dict[str, Any] = json.loads(line)
        return answer
