"""Does federating help each site? The demo's federation beside each site alone and all rows in one place.

    python simulations/did_it_help.py --choose [overrides]   the learning rate of each way, on validation rows
    python simulations/did_it_help.py [overrides]            the comparison, on held-out rows, for three seeds

Each way of training has the learning rate that was best for it in the first; conf/experiment/did_it_help.yaml
holds what came out. Each takes about an hour on two CPU cores. Both write into results/ beside this file, and
go on where they were stopped when they are started again.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fedtune
from fedtune.observability.progress import progress

RESULTS = Path(__file__).parent / "results"
KINDS = ("base", "federated", "local", "centralized")
SEEDS = (0, 1, 2)
RATES = ((2e-3, 1e-3), (4e-3, 2e-3), (8e-3, 4e-3))
"""(federation's, baselines'): the mean of deltas is shorter than each of them, so it wants a higher rate."""
CHOOSING = ("evaluation.rows=validation", "evaluation.generations=0")
"""On rows that the comparison neither trains on nor reports."""


def run(name: str, *overrides: str) -> dict[str, Any]:
    """Run the study's experiment, or finish it, and return its summary."""
    with progress() as observer:
        done = fedtune.simulate(
            ["experiment=did_it_help", f"name={name}", "resume=true", *overrides], observers=[observer]
        )
    return done.summary


def choose(overrides: Sequence[str]) -> None:
    """Measure each way at each rate and write the losses on validation rows."""
    losses: dict[str, dict[str, float]] = {kind: {} for kind in KINDS[1:]}
    for federated, baselines in RATES:
        summary = run(
            f"did_it_help_choose_{federated:g}",
            *CHOOSING,
            f"training.learning_rate={federated}",
            f"baseline_learning_rates={{local: {baselines}, centralized: {baselines}}}",
            *overrides,
        )
        means = summary["held_out_loss"]
        losses["federated"][f"{federated:g}"] = means["federated"]
        for kind in ("local", "centralized"):
            losses[kind][f"{baselines:g}"] = means[kind]
    _write("did_it_help_choice", {"validation_loss": losses, "chosen": {
        kind: min(found, key=found.__getitem__) for kind, found in losses.items()
    }}, _choice_table(losses))  # fmt: skip


def compare(overrides: Sequence[str]) -> None:
    """Run every seed and write the comparison."""
    runs = {seed: run(f"did_it_help_{seed}", f"seed={seed}", *overrides) for seed in SEEDS}
    result = summed_up(runs)
    _write("did_it_help", result, _table(result))


def summed_up(runs: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Return means over seeds, the spread of what is claimed, and each seed's own means."""
    sites = {
        name: {kind: statistics.fmean(one["sites"][name][kind] for one in runs.values()) for kind in KINDS}
        | {"train_examples": site["train_examples"]}
        for name, site in next(iter(runs.values()))["sites"].items()
    }
    means = {kind: statistics.fmean(one["held_out_loss"][kind] for one in runs.values()) for kind in KINDS}
    lead = [one["held_out_loss"]["local"] - one["held_out_loss"]["federated"] for one in runs.values()]
    ratio = [one["federated_gain_over_centralized_gain"] for one in runs.values()]
    return {
        "seeds": list(runs),
        "held_out_loss": means,
        "local_minus_federated": {"mean": statistics.fmean(lead), "min": min(lead), "max": max(lead)},
        "federated_gain_over_centralized_gain": {
            "mean": statistics.fmean(ratio),
            "min": min(ratio),
            "max": max(ratio),
        },
        "sites": sites,
        "not_better_than_local": [name for name, site in sites.items() if site["federated"] >= site["local"]],
        "by_seed": {seed: one["held_out_loss"] for seed, one in runs.items()},
        "seconds": {seed: one["seconds"] for seed, one in runs.items()},
    }


def _table(result: Mapping[str, Any]) -> str:
    """Return the losses as Markdown: one line a site, the mean, then each seed."""
    lines = [f"| site | rows | {' | '.join(KINDS)} |", "|---|---|---|---|---|---|"]
    for name, site in result["sites"].items():
        losses = " | ".join(f"{site[kind]:.3f}" for kind in KINDS)
        lines.append(f"| {name} | {site['train_examples']:,} | {losses} |")
    rows = [("**mean over sites**", result["held_out_loss"])]
    rows += [(f"of it, seed {seed}", losses) for seed, losses in result["by_seed"].items()]
    lines += [
        f"| {name} | | {' | '.join(f'{losses[kind]:.3f}' for kind in KINDS)} |" for name, losses in rows
    ]
    return "\n".join([*lines, ""])


def _choice_table(losses: Mapping[str, Mapping[str, float]]) -> str:
    rates = sorted({rate for found in losses.values() for rate in found}, key=float)
    lines = [f"| learning rate | {' | '.join(rates)} |", "|---" * (len(rates) + 1) + "|"]
    for kind, found in losses.items():
        best = min(found.values())
        cells = [_cell(found.get(rate), best) for rate in rates]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(loss: float | None, best: float) -> str:
    if loss is None:
        return ""
    return f"**{loss:.3f}**" if loss == best else f"{loss:.3f}"


def _write(name: str, result: Mapping[str, Any], table: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--choose" in arguments:
        choose([argument for argument in arguments if argument != "--choose"])
    else:
        compare(arguments)
