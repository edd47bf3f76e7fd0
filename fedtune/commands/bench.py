"""``fedtune bench NAME``: the measurements that the README quotes."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

from fedtune.commands.reporting import print_json, say
from fedtune.config.compose import compose
from fedtune.errors import MachineError, Problem

__all__ = ["run"]

Value = float | bool | list[float]
"""A figure, whether something holds, or [least, most]."""

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

    Raises:
        MachineError: FT804, what is compared with cannot be imported.
    """
    from fedtune.models.hardware import machine_facts  # noqa: PLC0415

    figures = _BENCHES[arguments.bench_command](arguments)
    if arguments.json:
        print_json({"bench": arguments.bench_command, "figures": figures, "machine": machine_facts()})
    width = max(len(key) for key in figures)
    for key, value in figures.items():
        say(f"{key:<{width}} {_shown(value)}")
    return 0


def _startup(arguments: argparse.Namespace) -> dict[str, Value]:
    """Seconds of ``fedtune --help`` and ``import fedtune`` as processes, and of loading the demo's base."""
    compose(["experiment=demo"])
    load = [sys.executable, "-c", _LOADS]
    _part("loading the demo's base model, once unmeasured")
    _printed(load)
    repeats: int = arguments.repeats
    measures: dict[str, tuple[Callable[[], float], int]] = {
        "help_seconds": (lambda: _wall([sys.executable, "-m", "fedtune", "--help"]), repeats),
        "import_seconds": (lambda: _wall([sys.executable, "-c", "import fedtune"]), repeats),
        "model_load_seconds": (lambda: float(_printed(load)), min(repeats, _MODEL_LOADS)),
    }
    figures: dict[str, Value] = {}
    for key, (measure, times) in measures.items():
        _part(f"{key}, {times} times")
        values = [measure() for _ in range(times)]
        figures |= {
            key: statistics.median(values),
            f"{key}_min": min(values),
            f"{key}_max": max(values),
            f"{key}_repeats": times,
        }
    return figures


def _secagg(arguments: argparse.Namespace) -> dict[str, Value]:
    """Secure aggregation and Flower's SecAgg+, in this process on one core."""
    from fedtune.secagg.bench import bench_secagg  # noqa: PLC0415

    try:
        return bench_secagg(scale=arguments.scale, on_part=_part)
    except ImportError as error:
        raise MachineError(
            Problem(
                code="FT804",
                what=f"Flower's SecAgg+, which is measured beside ours, cannot be imported: {error}",
                where="flwr",
                fix="install the version of flwr that fedtune asks for: fedtune doctor names it",
            )
        ) from error


def _deployment(_: argparse.Namespace) -> dict[str, Value]:
    """A server and four sites as processes."""
    from fedtune.commands.bench_deployment import bench_deployment  # noqa: PLC0415

    return bench_deployment()


def _aggregation(arguments: argparse.Namespace) -> dict[str, Value]:
    """Aggregation, in this process."""
    from fedtune.aggregation.bench import bench_aggregation  # noqa: PLC0415

    return dict(bench_aggregation(size=arguments.size, on_part=_part))


def _local(arguments: argparse.Namespace) -> dict[str, Value]:
    """Local training and a plain loop, each in a process of its own."""
    from fedtune.training.bench import bench_local  # noqa: PLC0415

    return dict(bench_local(repeats=arguments.repeats, on_part=_part))


def _scale(_: argparse.Namespace) -> dict[str, Value]:
    """Many virtual clients, each number of them in a process of its own."""
    from fedtune.simulation.bench_scale import bench_scale  # noqa: PLC0415

    return dict(bench_scale(on_part=_part))


_BENCHES: dict[str, Callable[[argparse.Namespace], dict[str, Value]]] = {
    "startup": _startup,
    "secagg": _secagg,
    "deployment": _deployment,
    "aggregation": _aggregation,
    "local": _local,
    "scale": _scale,
}


def _part(name: str) -> None:
    say(f"measuring {name} …")


def _shown(value: Value) -> str:
    if isinstance(value, list):
        return " to ".join(map(_shown, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _wall(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return time.perf_counter() - started


def _printed(command: list[str]) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout  # noqa: S603
