"""``fedtune bench NAME``: the measurements that the README quotes, each over fresh processes."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

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
    result = {"bench": arguments.name, "figures": figures, "machine": machine_facts()}
    if arguments.json:
        print_json(result)
    for name, spread in figures.items():
        say(f"{name:<22} median {spread['median']:.3f}  (min {spread['min']:.3f}, max {spread['max']:.3f})")
    return 0


def _startup(repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of ``fedtune --help`` and ``import fedtune`` as processes, and of loading the demo's base."""
    compose(["experiment=demo"])
    load = [sys.executable, "-c", _LOADS]
    _printed(load)
    return {
        "help_seconds": _spread(lambda: _wall([sys.executable, "-m", "fedtune", "--help"]), repeats),
        "import_seconds": _spread(lambda: _wall([sys.executable, "-c", "import fedtune"]), repeats),
        "model_load_seconds": _spread(lambda: float(_printed(load)), min(repeats, _MODEL_LOADS)),
    }


def _spread(measure: Callable[[], float], repeats: int) -> dict[str, Any]:
    values = [measure() for _ in range(repeats)]
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "repeats": repeats,
    }


def _wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return time.perf_counter() - started


def _printed(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
