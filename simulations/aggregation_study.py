"""Does it matter how updates are averaged? Every method on one model, one dataset and one budget of steps.

    python simulations/aggregation_study.py [options] [overrides]            the methods
    python simulations/aggregation_study.py --attacks [options] [overrides]  false sites against defences

Options choose parts of the whole, each a list with commas: --methods, --splits (0.1, 0.5: Dirichlet's
alpha, or iid), --clients, --ranks, --seeds. The whole (11 methods, 3 splits, 10 and 50 clients, ranks 4 and
16, 3 seeds) takes days on two CPU cores, so begin with a part: --splits 0.1 --clients 10 --ranks 4. Every
run goes on where it was stopped, and results/ beside this file is written anew from all parts that are
complete.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import fedtune
from fedtune.config.methods import METHODS
from fedtune.data.partition.base import client_names
from fedtune.observability.charts.rows import Bar, Row, grouped_rows
from fedtune.observability.progress import progress

RESULTS = Path(__file__).parent / "results"
SPLITS, CLIENTS, RANKS, SEEDS = ("0.1", "0.5", "iid"), (10, 50), (4, 16), (0, 1, 2)
STUDENT_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}
"""Two-sided 95 % quantile of Student's t for so many seeds."""
ATTACKS = ("sign_flip", "scaled", "noise", "zero", "free_rider")
DEFENCES = ("none", "median", "trimmed_mean", "krum", "multi_krum", "norm_bound", "cosine")
COUNTING = ("trimmed_mean", "krum", "multi_krum")
"""Defences that are told how many are false."""
FALSE = 2
"""Of ten sites in the attack table: one in five."""

Figures = dict[str, float]


def overrides_of(method: str, split: str, clients: int, rank: int, seed: int) -> list[str]:
    """Return the overrides of one run."""
    divided = ["partition=iid"] if split == "iid" else ["partition=dirichlet", f"partition.alpha={split}"]
    width = ["aggregation.sketch_width=" + str(2 * clients * rank)] if METHODS[method].sketches else []
    return [
        f"name=aggregation_study_{method}_{split}_{clients}_{rank}_{seed}",
        f"aggregation={method}",
        *width,
        *divided,
        f"partition.clients={clients}",
        f"peft.rank={rank}",
        f"peft.alpha={2 * rank}",
        f"seed={seed}",
    ]


def run(overrides: Sequence[str]) -> Figures:
    """Simulate, or finish, one run and return what the study compares."""
    with progress() as observer:
        done = fedtune.simulate(
            ["experiment=aggregation_study", "resume=true", *overrides], observers=[observer]
        )
    return figures_of(done.summary)


def figures_of(summary: Mapping[str, Any]) -> Figures:
    """Return a run's figures; the error is NaN where none was measured."""
    losses, error = summary["held_out_loss"], summary["aggregation_error"]
    return {
        "loss": losses["federated"],
        "gain": losses["base"] - losses["federated"],
        "error": math.nan if error is None else error,
        "up": summary["uplink_bytes"],
        "down": summary["downlink_bytes"],
        "seconds": summary["seconds"],
    }


def summed_up(runs: Sequence[Figures]) -> dict[str, Any]:
    """Return means over seeds, and the half width of the loss's 95 % interval; null for one seed."""
    means = {key: statistics.fmean(one[key] for one in runs) for key in runs[0]}
    spread: float | None = None
    if len(runs) > 1:
        spread = STUDENT_95[len(runs)] * statistics.stdev(one["loss"] for one in runs) / math.sqrt(len(runs))
    known = {key: None if math.isnan(value) else value for key, value in means.items()}
    return {**known, "loss_interval": spread, "seeds": len(runs), "losses": [one["loss"] for one in runs]}


def compare(chosen: argparse.Namespace) -> None:
    """Run every part that is asked for and write the tables and the picture."""
    results = _known("aggregation_study")
    for split, clients, rank in itertools.product(chosen.splits, chosen.clients, chosen.ranks):
        for method in chosen.methods:
            runs = [
                run([*overrides_of(method, split, clients, rank, seed), *chosen.overrides])
                for seed in chosen.seeds
            ]
            results[f"{split}/{clients}/{rank}/{method}"] = summed_up(runs)
            _write("aggregation_study", results, table(results))
            (RESULTS / "aggregation_study.svg").write_text(picture(results), encoding="utf-8")
    print(table(results))


def attack(chosen: argparse.Namespace) -> None:
    """Measure every attack against every defence, and write by how much the gain falls."""
    results = _known("aggregation_attacks")
    common = [
        "partition=iid",
        "partition.clients=10",
        "aggregation=alternating",
        "peft.rank=4",
        "peft.alpha=8",
    ]
    false = ",".join(client_names(10)[:FALSE])
    for defence in DEFENCES:
        for kind in ("none", *ATTACKS):
            lies = [] if kind == "none" else [f"attack.sites=[{false}]"]
            runs = [
                run([
                    f"name=aggregation_attack_{defence}_{kind}_{seed}",
                    *common,
                    f"defence={defence}",
                    *([f"defence.byzantine={FALSE}"] if defence in COUNTING else []),
                    f"attack={kind}",
                    *lies,
                    f"seed={seed}",
                    *chosen.overrides,
                ])
                for seed in chosen.seeds
            ]  # fmt: skip
            results[f"{defence}/{kind}"] = summed_up(runs)
            _write("aggregation_attacks", results, attack_table(results))
    print(attack_table(results))


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one line a method under each setting, as Markdown."""
    lines = [
        "| split | clients | rank | method | held-out loss | ± 95 % | error | MiB up | MiB down | seconds |",
        "|---" * 10 + "|",
    ]
    for key, one in results.items():
        split, clients, rank, method = key.split("/")
        interval = "" if one["loss_interval"] is None else f"{one['loss_interval']:.3f}"
        error = "" if one["error"] is None else f"{one['error']:.1e}"
        lines.append(
            f"| {split} | {clients} | {rank} | `{method}` | {one['loss']:.3f} | {interval} | {error} "
            f"| {one['up'] / 2**20:.2f} | {one['down'] / 2**20:.2f} | {one['seconds']:.0f} |"
        )
    return "\n".join([*lines, ""])


def attack_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the share of the clean plain gain that is left, a line a defence, a column an attack."""
    clean = results["none/none"]["gain"]
    columns = ("none", *ATTACKS)
    lines = ["| defence | no attack | " + " | ".join(ATTACKS) + " |", "|---" * (len(columns) + 1) + "|"]
    for defence in DEFENCES:
        cells = [
            f"{100 * results[key]['gain'] / clean:.0f} %" if (key := f"{defence}/{kind}") in results else ""
            for kind in columns
        ]
        lines.append(f"| `{defence}` | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def picture(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the losses as an SVG: a group of bars for each setting."""
    settings = dict.fromkeys(key.rpartition("/")[0] for key in results)
    rows = [
        Row(
            name=setting,
            bars=tuple(
                Bar(name=key.rpartition("/")[2], value=one["loss"], style="federated")
                for key, one in results.items()
                if key.rpartition("/")[0] == setting
            ),
        )
        for setting in settings
    ]
    return str(
        grouped_rows(
            rows,
            width=760,
            label="Held-out loss of every method under every setting",
            x_label="held-out loss, nats per response token",
            format_=lambda value: f"{value:.3f}",
            names_above=True,
        )
    )


def _known(name: str) -> dict[str, dict[str, Any]]:
    path = RESULTS / f"{name}.json"
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def _write(name: str, results: Mapping[str, Any], text: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")


def _arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    def listed(kind: type) -> Any:
        return lambda text: tuple(kind(part) for part in text.split(","))

    def option(name: str, kind: type, default: Iterable[Any]) -> None:
        parser.add_argument(f"--{name}", type=listed(kind), default=tuple(default))

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attacks", action="store_true")
    option("methods", str, METHODS)
    option("splits", str, SPLITS)
    option("clients", int, CLIENTS)
    option("ranks", int, RANKS)
    option("seeds", int, SEEDS)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = _arguments()
    (attack if arguments.attacks else compare)(arguments)
