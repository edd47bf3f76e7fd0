"""``fedtune server status``: which sites are there, and who was in which round and why not."""

from __future__ import annotations

import argparse
import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.gate.traffic import read_traffic
from fedtune.coordinator.status import ServerStatus, read_status
from fedtune.errors import FederationError, MachineError, Problem
from fedtune.keys.enrolment import read_node_public
from fedtune.keys.private import public_from_point, public_hash
from fedtune.observability.events import ClientFailed, Event, Sites, effective_events, read_events
from fedtune.observability.round_table import round_table
from fedtune.secagg.entry import fingerprint

__all__ = ["run_status"]

_STOPPED = 7


def run_status(arguments: argparse.Namespace) -> int:
    """Print what the server knows.

    Returns:
        0, or 7 when no server runs.

    Raises:
        MachineError: FT669, none ever has in this folder.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    status = read_status(folder.status)
    if status is None:
        raise MachineError(
            Problem(
                code="FT669",
                what="no server has served this folder yet",
                where=str(folder.path),
                fix=f"start one: fedtune server start {folder.path}",
            )
        )
    events = _events(folder, status)
    if arguments.json:
        print_json(_described(folder, status, events))
    else:
        _print(status, events)
    return 0 if status.is_running else _STOPPED


def _events(folder: CoordinatorFolder, status: ServerStatus) -> list[Event]:
    path = folder.runs / status.run.name / "rounds.jsonl" if status.run is not None else None
    return effective_events(read_events(path)) if path is not None and path.exists() else []


def _described(folder: CoordinatorFolder, status: ServerStatus, events: list[Event]) -> dict[str, Any]:
    return dataclasses.asdict(status) | {
        "running": status.is_running,
        "versions": _versions(events),
        "rounds": [_round(row, events) for row in round_table(events)],
        "traffic": _traffic(folder),
    }


def _traffic(folder: CoordinatorFolder) -> dict[str, Any] | None:
    """Return since when the gate counts, and what each site sent and got; others are of removed sites."""
    traffic = read_traffic(folder.traffic)
    if traffic is None:
        return None
    counted = json.loads(traffic.to_json())
    names = {}
    for path in sorted(folder.nodes.glob("*.pub")):
        with suppress(FederationError):  # the server's log says which file is damaged
            names[fingerprint(public_hash(public_from_point(read_node_public(path))))] = path.stem
    nodes = counted["nodes"]
    return {
        "since": counted["since"],
        "sites": {names[node]: nodes[node] for node in nodes if node in names},
        "removed": {node: nodes[node] for node in nodes if node not in names},
    }


def _round(row: dict[str, Any], events: list[Event]) -> dict[str, Any]:
    failed = [
        {"site": event.client, "stage": event.stage, "code": event.code, "reason": event.reason}
        for event in events
        if isinstance(event, ClientFailed) and event.round == row["round"] and event.client in row["failed"]
    ]
    kept = ("round", "finished", "clients", "held_out_loss", "uplink_bytes", "downlink_bytes")
    return {key: row[key] for key in kept} | {"failed": failed}


def _versions(events: list[Event]) -> dict[str, str | None]:
    last = next((event for event in reversed(events) if isinstance(event, Sites)), None)
    return {} if last is None else {site.name: site.version for site in last.sites}


def _print(status: ServerStatus, events: list[Event]) -> None:
    running = f"server {status.version} runs" if status.is_running else "NO SERVER RUNS"
    say(f"{status.federation}: {running}; sites connect to {', '.join(status.listen)}")
    versions = _versions(events)
    for site in status.sites:
        where = "connected" if site.online else f"away, last connected {site.last_activated[:16] or 'never'}"
        version = f"  fedtune {versions[site.site]}" if versions.get(site.site) else ""
        say(f"  {site.site:<24} {where}{version}")
    if status.run is None:
        return
    say(f"run {status.run.name}: {status.run.state} {status.run.reason}".rstrip())
    for row in round_table(events):
        state = "finished" if row["finished"] else "going on"
        say(f"  round {row['round']}: {state}; {', '.join(row['clients']) or 'nobody'}")
        for failure in _round(row, events)["failed"]:
            say(f"    {failure['site']} failed at {failure['stage']}: {failure['code']} {failure['reason']}")
