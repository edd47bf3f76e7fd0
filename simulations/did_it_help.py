"""Does federating help each site? The demo's federation beside each site alone and all rows in one place.

Run it:   python simulations/did_it_help.py [overrides]
It takes some twenty minutes on two CPU cores and writes results/did_it_help.json and .md beside this file. A
run that was stopped goes on when it is started again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedtune
from fedtune.observability.progress import progress

RESULTS = Path(__file__).parent / "results"
KEPT = (
    "rounds",
    "clients",
    "held_out_loss",
    "federated_gain_over_centralized_gain",
    "sites",
    "aggregation_error",
    "seconds",
    "peak_memory_mib",
)


def table(summary: dict[str, Any]) -> str:
    """Return the losses as a Markdown table: one line a site, then the mean."""
    kinds = ("base", "federated", "local", "centralized")
    lines = [f"| site | rows | {' | '.join(kinds)} |", "|---|---|---|---|---|---|"]
    for name, site in summary["sites"].items():
        losses = " | ".join(f"{site[kind]:.3f}" for kind in kinds)
        lines.append(f"| {name} | {site['train_examples']:,} | {losses} |")
    means = " | ".join(f"{summary['held_out_loss'][kind]:.3f}" for kind in kinds)
    return "\n".join([*lines, f"| **mean over sites** | | {means} |", ""])


def main(overrides: Sequence[str]) -> None:
    """Run the study and write its results."""
    with progress() as observer:
        run = fedtune.simulate(["experiment=did_it_help", "resume=true", *overrides], observers=[observer])
    RESULTS.mkdir(exist_ok=True)
    kept = {key: run.summary[key] for key in KEPT}
    (RESULTS / "did_it_help.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "did_it_help.md").write_text(table(run.summary), encoding="utf-8")
    print(table(run.summary))


if __name__ == "__main__":
    main(sys.argv[1:])
