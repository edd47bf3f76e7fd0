"""``fedtune simulate``: one run with its progress, or with ``-m`` one for each of several values."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.config.compose import compose
from fedtune.config.overrides import quoted
from fedtune.config.rules import require_simulated
from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json
from fedtune.observability.events import RunStarted, read_events
from fedtune.observability.run_directory import events_path
from fedtune.observability.summary import summarise
from fedtune.observability.summary_table import print_summary

__all__ = ["run"]

_SAME_RUN = ("resume", "runs_dir")
"""Keys that say how to run, not what."""


def run(arguments: argparse.Namespace) -> int:
    """Run what the overrides describe; with ``resume=true``, show a run that is complete as it is.

    Returns:
        0, or 130 after Ctrl-C, when it has printed how to go on.
    """
    if arguments.multirun:
        from fedtune.commands.sweep import run_sweep  # noqa: PLC0415

        return run_sweep(arguments.overrides, as_json=arguments.json)
    # Refused before torch is imported; and from here on the run has a name, which is needed to go on with it.
    config = compose(arguments.overrides)
    require_simulated(config)
    path = Path(config.runs_dir) / config.name
    summary = complete_summary(config, path)
    if summary is None:
        try:
            summary = _simulated([*arguments.overrides, f"name={quoted(config.name)}"])
        except KeyboardInterrupt:
            again = _to_go_on(arguments.overrides, config.name)
            say(f"\nstopped; complete rounds are kept. To go on: {again}")
            return 130
    else:
        say(f"{path} is complete. For a new run give another name=, or remove the folder.\n")
    if arguments.json:
        print_json(summary)
    print_summary(summary)
    say(f"\nreport:  {path / 'report.html'}\nadapter: {path / 'adapter'}")
    return 0


def complete_summary(config: Config, path: Path) -> dict[str, Any] | None:
    """The summary of a run that ``resume=true`` would find complete, with nothing left to do; else None."""
    written = ("rounds.jsonl", "report.html", "adapter/adapter_model.safetensors")
    if not config.resume or not all((path / name).is_file() for name in written):
        return None
    events = read_events(events_path(path))
    summary = summarise(events)
    started = next(event for event in reversed(events) if isinstance(event, RunStarted))
    wanted = json.loads(config_to_json(config))
    same = all(started.config.get(key) == value for key, value in wanted.items() if key not in _SAME_RUN)
    return summary if same and summary["status"] == "completed" else None


def _simulated(overrides: Sequence[str]) -> dict[str, Any]:
    from fedtune.observability.progress import progress  # noqa: PLC0415
    from fedtune.simulation.simulate import simulate  # noqa: PLC0415

    with progress() as observer:
        return simulate(overrides, observers=[observer]).summary


def _to_go_on(overrides: Sequence[str], name: str) -> str:
    kept = [text for text in overrides if not text.startswith(("resume=", "name="))]
    return shlex.join(["fedtune", "simulate", *kept, f"name={name}", "resume=true"])
