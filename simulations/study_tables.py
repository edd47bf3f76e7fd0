"""What the runs of the aggregation study add up to: means, intervals, differences and tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "Figures",
    "Results",
    "attack_table",
    "choice_table",
    "differences",
    "figures_of",
    "interval",
    "pairs_table",
    "summed_up",
    "table",
]

Figures = dict[str, float | None]
Results = Mapping[str, Mapping[str, Any]]

_STUDENT_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}
_NORMAL_95 = 1.959964


def figures_of(summary: Mapping[str, Any], seconds: float) -> Figures:
    """Return a run's figures; the error is None where none was measured.

    Args:
        summary: Of the run.
        seconds: Processor time that it took.
    """
    losses = summary["held_out_loss"]
    return {
        "base": losses["base"],
        "loss": losses["federated"],
        "gain": losses["base"] - losses["federated"],
        "error": summary["aggregation_error"],
        "up": summary["uplink_bytes"],
        "down": summary["downlink_bytes"],
        "seconds": seconds,
    }


def interval(values: Sequence[float]) -> float | None:
    """Return the half width of the mean's 95 % interval by Student's t; None for one value."""
    freedom = len(values) - 1
    if freedom < 1:
        return None
    z = _NORMAL_95
    # Fisher and Cornish 1960, the expansion of Student's quantile: within 0.001 from six degrees on.
    expanded = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    expanded += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    quantile = _STUDENT_95.get(freedom, expanded)
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def summed_up(runs: Sequence[Figures]) -> dict[str, Any]:
    """Return means over seeds, each seed's losses and gains, and the half width of the gain's interval."""
    means = {
        key: None if any(one[key] is None for one in runs) else statistics.fmean(_values(runs, key))
        for key in runs[0]
    }
    gains = _values(runs, "gain")
    return {
        **means,
        "gain_interval": interval(gains),
        "seeds": len(runs),
        "losses": _values(runs, "loss"),
        "gains": gains,
    }


def _values(runs: Iterable[Figures], key: str) -> list[float]:
    return [value for one in runs if (value := one[key]) is not None]


def table(results: Results) -> str:
    """Return one line a method under each setting, as Markdown."""
    lines = [
        "| split | clients | rank | method | held-out loss | gain | ± 95 % | error | KiB up | KiB down | s |",
        "|---" * 11 + "|",
    ]
    for key, one in results.items():
        split, clients, rank, method = key.split("/")
        spread = "" if one["gain_interval"] is None else f"{one['gain_interval']:.3f}"
        error = "" if one["error"] is None else f"{one['error']:.1e}"
        lines.append(
            f"| {split} | {clients} | {rank} | `{method}` | {one['loss']:.3f} | {one['gain']:.3f} | {spread} "
            f"| {error} | {one['up'] / 2**10:.0f} | {one['down'] / 2**10:.0f} | {one['seconds']:.0f} |"
        )
    return "\n".join([*lines, ""])


def pairs_table(results: Results, reference: str = "fedavg") -> str:
    """Return by how much each method's loss differs from another's, run by run of like setting and seed."""
    methods = dict.fromkeys(key.rpartition("/")[2] for key in results)
    splits = dict.fromkeys(key.partition("/")[0] for key in results)
    lines = [
        f"| method | loss less that of `{reference}` | ± 95 % | pairs | better in | "
        + " | ".join(splits)
        + " | uplink |",
        "|---" * (6 + len(splits)) + "|",
    ]
    for method in methods:
        paired = differences(results, method, reference)
        every = [value for _, values, _ in paired for value in values]
        if not every:
            continue
        spread = interval(every)
        parts = [[value for split, values, _ in paired if split == wanted for value in values]
                 for wanted in splits]  # fmt: skip
        lines.append(
            f"| `{method}` | {statistics.fmean(every):+.3f} "
            f"| {'' if spread is None else f'{spread:.3f}'} | {len(every)} "
            f"| {sum(value < 0 for value in every)} | "
            + " | ".join(f"{statistics.fmean(part):+.3f}" if part else "" for part in parts)
            + f" | {statistics.fmean(ratio for _, _, ratio in paired):.2f} |"
        )
    return "\n".join([*lines, ""])


def differences(results: Results, method: str, reference: str) -> list[tuple[str, list[float], float]]:
    """Return for each setting: its split, each run's loss less the reference's, and the ratio of bytes up."""
    found = []
    for key, one in results.items():
        setting, _, name = key.rpartition("/")
        other = results.get(f"{setting}/{reference}")
        if name == method and other is not None:
            values = [mine - its for mine, its in zip(one["losses"], other["losses"], strict=False)]
            found.append((setting.partition("/")[0], values, one["up"] / other["up"]))
    return found


def attack_table(results: Results) -> str:
    """Return the share of the clean plain gain that is left, a line a defence, a column an attack."""
    clean = results["none/none"]["gains"]
    defences = dict.fromkeys(key.partition("/")[0] for key in results)
    lies = dict.fromkeys(key.partition("/")[2] for key in results)
    lines = ["| defence | " + " | ".join(lies) + " |", "|---" * (len(lies) + 1) + "|"]
    for defence in defences:
        cells = []
        for lie in lies:
            gains = results.get(f"{defence}/{lie}", {"gains": []})["gains"]
            shares = [gain / plain for gain, plain in zip(gains, clean, strict=False)]
            cells.append(f"{100 * statistics.fmean(shares):.0f} %" if shares else "")
        lines.append(f"| `{defence}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def choice_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Return each method's loss at each rate, and the best of them in bold."""
    rates = dict.fromkeys(rate for losses in results.values() for rate in losses)
    lines = ["| rank | method | " + " | ".join(rates) + " |", "|---" * (len(rates) + 2) + "|"]
    for key, losses in results.items():
        rank, _, method = key.partition("/")
        best = min(losses, key=losses.__getitem__)
        shown = {rate: f"{loss:.3f}" for rate, loss in losses.items()} | {best: f"**{losses[best]:.3f}**"}
        cells = [shown.get(rate, "") for rate in rates]
        lines.append(f"| {rank} | `{method}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])
