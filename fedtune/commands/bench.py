"""``fedtune bench NAME``: the measurements that the README quotes, each over fresh processes."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from fedtune.commands.reporting import print_json, say
from fedtune.config.compose import compose

__all__ = ["run"]

_LOADS = """
import time
from fedtune.config.compose import compose
from fedtune.models.adapted import load_adapted_model
config = compose(["experiment=demo"])
started = time.perf_counter()
load_adapted_model(config.model, config.peft, gradient_checkpointing=False)
print(time.perf_counter() - started)
"""
_MODEL_LOADS = 3
"""A load takes ten times as long as a start: fewer repeats. The first, which may convert, does not count."""


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; the JSON's keys are an interface.

    Returns:
        0.
    """
    from fedtune.models.hardware import machine_facts  # noqa: PLC0415

    figures = _startup(arguments.repeats)
    if arguments.json:
        print_json({"bench": arguments.name, "figures": figures, "machine": machine_facts()})
    for key, value in figures.items():
        say(f"{key:<27} {value:.4g}")
    return 0


def _startup(repeats: int) -> dict[str, float]:
    """Seconds of ``fedtune --help`` and ``import fedtune`` as processes, and of loading the demo's base."""
    compose(["experiment=demo"])
    load = [sys.executable, "-c", _LOADS]
    _printed(load)
    measures: dict[str, tuple[Callable[[], float], int]] = {
        "help_seconds": (lambda: _wall([sys.executable, "-m", "fedtune", "--help"]), repeats),
        "import_seconds": (lambda: _wall([sys.executable, "-c", "import fedtune"]), repeats),
        "model_load_seconds": (lambda: float(_printed(load)), min(repeats, _MODEL_LOADS)),
    }
    figures: dict[str, float] = {}
    for key, (measure, times) in measures.items():
        values = [measure() for _ in range(times)]
        figures |= {
            key: statistics.median(values),
            f"{key}_min": min(values),
            f"{key}_max": max(values),
            f"{key}_repeats": times,
        }
    return figures


def _wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return time.perf_counter() - started


def _printed(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
