"""Write docs/reference/performance.md from what ``fedtune bench NAME --json`` printed.

    fedtune bench local --json > simulations/results/performance/local.json
    python simulations/performance.py

Each file of simulations/results/performance/ is one command's output as it came, named after the bench. A
row of the page is a key of such a file; a key with a spread, KEY_spread, is a median.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "simulations" / "results" / "performance"
PAGE = ROOT / "docs" / "reference" / "performance.md"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure of the page.

    Attributes:
        key: In the file's figures, without the bench's name before it.
        what: For a reader.
        least: What it has to reach, or None.
        most: What it must not pass, or None.
    """

    key: str
    what: str
    least: float | None = None
    most: float | None = None


ROWS: Mapping[str, tuple[Row, ...]] = {
    "local": (
        Row(key="speedup_over_plain", what="tokens/s over a plain padded loop, 16 rows a step", least=1.6),
        Row(key="speedup_over_plain_4", what="the same, 4 rows a step", least=1.1),
        Row(key="memory_over_plain", what="peak memory over the plain loop's, 16 rows", most=0.5),
        Row(key="work_memory_over_plain", what="the same, above the loaded base", most=0.4),
        Row(
            key="fraction_of_matmul_rate",
            what="arithmetic rate of a float32 step over the best matrix product's",
            least=0.5,
        ),
        Row(key="local_tokens_per_second", what="tokens/s, 16 rows a step"),
        Row(key="plain_tokens_per_second", what="tokens/s of the plain loop"),
        Row(key="local_peak_mib", what="peak memory, MiB"),
        Row(key="plain_peak_mib", what="peak memory of the plain loop, MiB"),
    ),
}
"""Bench to rows, in the order of the page."""

_MACHINE = ("cpu", "physical_cores", "threads", "memory_mib", "gpu", "torch", "transformers", "bitsandbytes")

_HEAD = """# Performance

What was measured, by which command, on which machine. Both sides of a comparison ran in the same run, taking
turns. A figure with a range is a median; the range goes from the least to the most. A wish is what the
project set itself, and where it is missed the page says so.

To renew a part: run its command with `--json`, put what it prints into `simulations/results/performance/`,
and run `python simulations/performance.py`.
"""


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page.

    Args:
        results: Bench to what it printed.
    """
    parts = [_HEAD]
    for bench, rows in ROWS.items():
        if bench not in results:
            continue
        figures, machine = results[bench]["figures"], results[bench]["machine"]
        lines = [
            f"## `fedtune bench {bench}`\n",
            _told(machine) + "\n",
            "| what | key | measured | range | wish |",
            "|---|---|---|---|---|",
        ]
        lines += [_line(bench, row, figures) for row in rows if row.key in figures]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def read_results() -> dict[str, dict[str, Any]]:
    """Read every file, by the bench that it names."""
    found = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json")))
    return {result["bench"]: result for result in found}


def _told(machine: Mapping[str, Any]) -> str:
    facts = [f"{key.replace('_', ' ')} {machine[key]}" for key in _MACHINE if machine.get(key) is not None]
    return ", ".join(facts) + "."


def _line(bench: str, row: Row, figures: Mapping[str, Any]) -> str:
    value, spread = figures[row.key], figures.get(f"{row.key}_spread")
    between = "" if spread is None else f"{_number(spread[0])} to {_number(spread[1])}"
    wish = ""
    if row.least is not None:
        wish = f"≥ {_number(row.least)}" + ("" if value >= row.least else ", missed")
    elif row.most is not None:
        wish = f"≤ {_number(row.most)}" + ("" if value <= row.most else ", missed")
    return f"| {row.what} | `{bench}.{row.key}` | {_number(value)} | {between} | {wish} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    PAGE.write_text(page(read_results()), encoding="utf-8")
