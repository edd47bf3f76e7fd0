"""``fedtune simulate``: one run with its progress, or with ``-m`` one for each of several values."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence

from fedtune.commands.reporting import print_json, say
from fedtune.config.compose import compose
from fedtune.config.overrides import quoted

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Run what the overrides describe.

    Returns:
        0, or 130 after Ctrl-C, when it has printed how to go on.
    """
    if arguments.multirun:
        from fedtune.commands.sweep import run_sweep  # noqa: PLC0415

        return run_sweep(arguments.overrides, as_json=arguments.json)
    # Refused before torch is imported; and from here on the run has a name, which is needed to go on with it.
    config = compose(arguments.overrides)
    named = [*arguments.overrides, f"name={quoted(config.name)}"]
    try:
        return _run_one(named, as_json=arguments.json)
    except KeyboardInterrupt:
        say(f"\nstopped; complete rounds are kept. To go on: {_to_go_on(arguments.overrides, config.name)}")
        return 130


def _run_one(overrides: Sequence[str], *, as_json: bool) -> int:
    from fedtune.observability.progress import progress  # noqa: PLC0415
    from fedtune.observability.summary_table import print_summary  # noqa: PLC0415
    from fedtune.simulation.simulate import simulate  # noqa: PLC0415

    with progress() as observer:
        finished = simulate(overrides, observers=[observer])
    if as_json:
        print_json(finished.summary)
    print_summary(finished.summary)
    say(f"\nreport:  {finished.report}\nadapter: {finished.adapter_dir}")
    return 0


def _to_go_on(overrides: Sequence[str], name: str) -> str:
    kept = [text for text in overrides if not text.startswith(("resume=", "name="))]
    return shlex.join(["fedtune", "simulate", *kept, f"name={name}", "resume=true"])
