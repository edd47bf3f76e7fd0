"""Does it matter how updates are averaged? Every method on one model, one dataset and one budget of steps.

    python simulations/aggregation_study.py --choose [options]    the learning rate of each method
    python simulations/aggregation_study.py [options]             the methods
    python simulations/aggregation_study.py --attacks [options]   false sites against defences

Options choose parts of the whole, each a list with commas: --methods, --splits (0.1, 0.5: Dirichlet's
alpha, or iid), --clients, --ranks, --seeds, --defences, --lies. Only what is missing is run: a part that is
complete is read from its run directory, and results/ beside this file is written anew after every part.
simulations/results/README.md says what came out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from study_model import lower_layers_remembered, prepare
from study_picture import picture
from study_tables import (
    Figures,
    attack_table,
    choice_table,
    figures_of,
    pairs_table,
    summed_up,
    table,
)

import fedtune
from fedtune.config.compose import compose
from fedtune.config.methods import METHODS
from fedtune.data.partition.base import client_names
from fedtune.models.cache import cache_folder

RESULTS = Path(__file__).parent / "results"
EXPERIMENT = "experiment=aggregation_study"
SPLITS, CLIENTS, RANKS, SEEDS = ("0.1", "0.5", "iid"), (10, 50), (4, 16), (0, 1, 2)
COHORT = 10
"""Sites in a round: all of 10, drawn at random from 50."""
CHOOSING_SEED = 9
"""Of the split and the training that learning rates are chosen on, and on rows that nothing else reports."""
RATES = (1e-2, 2e-2, 4e-2, 8e-2)
"""That every method is tried at; one that is best at the last of them is tried at twice that, and so on."""
WITH_CUT = ("fedex", "flora")
"""Methods whose side-car grows with every round; it is cut to four times the rank."""

LIES = {
    "sign_flip": ("sign_flip", 1.0),
    "sign_flip x 10": ("sign_flip", 10.0),
    "scaled x 10": ("scaled", 10.0),
    "noise x 10": ("noise", 10.0),
    "zero": ("zero", 1.0),
    "free_rider": ("free_rider", 1.0),
    "not_a_number": ("not_a_number", 1.0),
    "label_flip": ("label_flip", 1.0),
    "backdoor x 10": ("backdoor", 10.0),
}
"""Column of the attack table to ``attack.kind`` and ``attack.strength``."""
DEFENCES = ("none", "median", "trimmed_mean", "krum", "multi_krum", "norm_bound", "cosine")
COUNTING = ("trimmed_mean", "krum", "multi_krum")
"""Defences that are told how many are false."""
FALSE = 2
"""Of ten sites in the attack table: one in five."""

Runner = Callable[[Sequence[str]], Figures]


def overrides_of(method: str, split: str, clients: int, rank: int, seed: int) -> list[str]:
    """Return the overrides of one run."""
    divided = ["partition=iid"] if split == "iid" else ["partition=dirichlet", f"partition.alpha={split}"]
    width = [f"aggregation.sketch_width={2 * COHORT * rank}"] if METHODS[method].sketches else []
    cut = [f"aggregation.side_car_rank={4 * rank}"] if method in WITH_CUT else []
    rate = chosen_rate(method, rank)
    return [
        f"name=aggregation_study_{method}_{split}_{clients}_{rank}_{seed}",
        f"aggregation={method}",
        *width,
        *cut,
        *([] if rate is None else [f"training.learning_rate={rate}"]),
        *divided,
        f"partition.clients={clients}",
        f"federation.clients_per_round={COHORT}",
        f"peft.rank={rank}",
        f"peft.alpha={2 * rank}",
        f"seed={seed}",
    ]


def chosen_rate(method: str, rank: int) -> str | None:
    """Return the learning rate that was best for a method in `choose`; None if it was not measured."""
    losses = _known("aggregation_choice").get(f"{rank}/{method}")
    return min(losses, key=losses.__getitem__) if losses else None


@contextmanager
def runner(own: Sequence[str]) -> Iterator[Runner]:
    """Give a function that runs one part, or reads what it gave, with the model loaded once for all."""
    prepared = [EXPERIMENT, *prepare(compose([EXPERIMENT]))]
    config = compose([*prepared, *own])
    folder = cache_folder(config.model) / "aggregation_study"
    with lower_layers_remembered(folder) as fill:

        def run(overrides: Sequence[str]) -> Figures:
            name = overrides[0].removeprefix("name=")
            kept = Path(config.runs_dir) / name / "figures.json"
            if kept.exists():
                found: Figures = json.loads(kept.read_text(encoding="utf-8"))
                return found
            fill(config)
            begun = time.process_time()
            done = fedtune.simulate([*prepared, "resume=true", *overrides, *own])
            figures = figures_of(done.summary, time.process_time() - begun)
            kept.write_text(json.dumps(figures), encoding="utf-8")
            print(f"{name} {figures['loss']:.4f} {figures['seconds']:.1f} s", file=sys.stderr, flush=True)
            return figures

        yield run


def choose(chosen: argparse.Namespace) -> None:
    """Measure each method at each rate and rank, and write the losses on validation rows."""
    results = _known("aggregation_choice")
    with runner(chosen.overrides) as run:

        def loss(method: str, rank: int, rate: float) -> float:
            named, *settings = overrides_of(method, "0.5", 10, rank, CHOOSING_SEED)
            figures = run([
                f"{named}_{rate:g}",
                *(setting for setting in settings if "learning_rate" not in setting),
                f"training.learning_rate={rate}",
                "evaluation.rows=validation",
                "data.validation_max_rows=20",
            ])  # fmt: skip
            measured: float = figures["loss"]
            return measured

        for rank, method in itertools.product(chosen.ranks, chosen.methods):
            losses = {rate: loss(method, rank, rate) for rate in RATES}
            while min(losses, key=losses.__getitem__) == (largest := max(losses)):
                losses[2 * largest] = loss(method, rank, 2 * largest)
            results[f"{rank}/{method}"] = {f"{rate:g}": measured for rate, measured in losses.items()}
            _write("aggregation_choice", results, choice_table(results))
    print(choice_table(results))


def compare(chosen: argparse.Namespace) -> None:
    """Run every part that is asked for and write the tables and the picture."""
    results = _known("aggregation_study")
    parts = itertools.product(chosen.ranks, chosen.clients, chosen.splits, chosen.methods)
    with runner(chosen.overrides) as run:
        # Another rank or kind of adapter is another model to load.
        for rank, clients, split, method in sorted(parts, key=lambda part: (part[0], part[3] == "core")):
            runs = [run(overrides_of(method, split, clients, rank, seed)) for seed in chosen.seeds]
            results[f"{split}/{clients}/{rank}/{method}"] = summed_up(runs)
            results = in_order(results)
            _write("aggregation_study", results, f"{pairs_table(results)}\n{table(results)}")
            (RESULTS / "aggregation_study.svg").write_text(picture(results), encoding="utf-8")
    print(table(results))


def in_order(results: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return results in the order in which the table shows them, whatever was run first."""
    settings = itertools.product(CLIENTS, RANKS, SPLITS, METHODS)
    keys = [f"{split}/{clients}/{rank}/{method}" for clients, rank, split, method in settings]
    return {key: results[key] for key in dict.fromkeys([*keys, *results]) if key in results}


def lies_of(lie: str) -> list[str]:
    """Return the overrides of a column of the attack table."""
    if lie == "none":
        return []
    kind, strength = LIES[lie]
    # Updates that are not a number never count: the round goes on with the eight others.
    quorum = [f"federation.min_replies={COHORT - FALSE}"] if kind == "not_a_number" else []
    sites = ",".join(client_names(COHORT)[:FALSE])
    return [f"attack={kind}", f"attack.strength={strength}", f"attack.sites=[{sites}]", *quorum]


def attack(chosen: argparse.Namespace) -> None:
    """Measure every attack against every defence, and write what is left of the gain."""
    results = _known("aggregation_attacks")
    runs: dict[str, list[Figures]] = {}
    with runner(chosen.overrides) as run:
        for seed, defence, lie in itertools.product(chosen.seeds, chosen.defences, ("none", *chosen.lies)):
            named, *settings = overrides_of("alternating", "iid", COHORT, 4, seed)
            figures = run([
                f"{named}_{defence}_{lie.replace(' ', '')}",
                *settings,
                f"defence={defence}",
                *([f"defence.byzantine={FALSE}"] if defence in COUNTING else []),
                *lies_of(lie),
            ])  # fmt: skip
            runs.setdefault(f"{defence}/{lie}", []).append(figures)
            results[f"{defence}/{lie}"] = summed_up(runs[f"{defence}/{lie}"])
            _write("aggregation_attacks", results, attack_table(results))
    print(attack_table(results))


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
    parser.add_argument("--choose", action="store_const", dest="part", const=choose, default=compare)
    parser.add_argument("--attacks", action="store_const", dest="part", const=attack)
    option("methods", str, METHODS)
    option("splits", str, SPLITS)
    option("clients", int, CLIENTS)
    option("ranks", int, RANKS)
    option("seeds", int, SEEDS)
    option("defences", str, DEFENCES)
    option("lies", str, LIES)
    parser.add_argument("overrides", nargs="*")
    return parser.parse_args(argv)


if __name__ == "__main__":
    arguments = _arguments()
    arguments.part(arguments)
