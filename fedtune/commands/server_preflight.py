"""``fedtune server preflight``: is every site ready for a run? One table, and a round of one step."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedtune.commands.preflight_advice import Readiness, readiness
from fedtune.commands.preflight_view import print_preflight
from fedtune.commands.reporting import print_json, say
from fedtune.commands.server_run import composed, require_possible, serving, watched
from fedtune.config.schema import Config
from fedtune.coordinator.dry_config import dry_config
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.wanted import PreflightOrder, WantedRuns
from fedtune.errors import FederationError, Problem
from fedtune.observability.events import DryRound, Preflight, read_events

__all__ = ["run_preflight"]

WAIT_SECONDS = 60.0
"""How long a preflight waits for sites, unless ``federation.join_timeout_seconds`` is given."""

_NOT_READY = 7


def run_preflight(arguments: argparse.Namespace) -> int:
    """Ask every enrolled site whether it is ready for a run, and try a round of one step.

    Returns:
        0 when every site is ready, else 7; 130 after Ctrl-C, which stops the preflight.

    Raises:
        ConfigError: A configuration that cannot be run with these sites.
        MachineError: FT669, no server serves this folder.
        RunError: FT665, a run is going on.
        FederationError: FT613, the preflight ended without a table, with the reason.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    serving(folder)
    config = replace(composed(arguments.overrides), runs_dir="runs", resume=False)
    require_possible(config, folder)
    given = {text.partition("=")[0].lstrip("+") for text in arguments.overrides}
    order = PreflightOrder(
        config=config,
        to_be_approved="name" in given,
        dry_round=not arguments.no_dry_round,
        timeout_seconds=_timeout(config, given),
    )
    name = f"preflight-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    WantedRuns(folder.wanted).add(dry_config(config, name=name, timeout_seconds=order.timeout_seconds), order)
    try:
        ended = watched(folder, name)
    except KeyboardInterrupt:
        WantedRuns(folder.wanted).ask_to_stop(name)
        say(f"\n{name} is stopped")
        return 130
    events = read_events(folder.runs / name / "rounds.jsonl") if (folder.runs / name).exists() else []
    asked = next((event for event in reversed(events) if isinstance(event, Preflight)), None)
    tried = next((event for event in reversed(events) if isinstance(event, DryRound)), None)
    if asked is None or ended.state != "completed":
        raise FederationError(
            Problem(
                code="FT613",
                what=f"the preflight {ended.state.replace('_', ' ')}: {ended.reason}",
                where=str(folder.runs / name),
                fix="mend what is named, then start it again",
            )
        )
    found = readiness(asked, tried)
    if arguments.json:
        print_json(_described(name, found, asked, tried))
    else:
        print_preflight(found, asked, tried, named=order.to_be_approved)
        say(f"\n{folder.runs / name} keeps it")
    return 0 if found.ready else _NOT_READY


def _timeout(config: Config, given: set[str]) -> float:
    key = "federation.join_timeout_seconds"
    return config.federation.join_timeout_seconds if key in given else WAIT_SECONDS


def _described(name: str, found: Readiness, asked: Preflight, tried: DryRound | None) -> dict[str, Any]:
    dry = None if tried is None else dataclasses.asdict(tried)
    return {"preflight": name, **dataclasses.asdict(asked)} | {
        "ready": found.ready,
        "advice": [dataclasses.asdict(each) for each in found.advice],
        "dry_round": dry,
    }
