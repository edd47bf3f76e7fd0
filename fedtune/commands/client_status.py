"""``fedtune client status``: what the client does, and what waits for the operator."""

from __future__ import annotations

import argparse
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.commands.serving import holder
from fedtune.keys.joining import read_connection
from fedtune.site.approvals import Approvals, read_standing
from fedtune.site.folder import SiteFolder
from fedtune.site.settings import load_settings

__all__ = ["run_status"]

_STOPPED = 7
_SECONDS = 5.0
_MOST_BYTES = 2**16


def run_status(arguments: argparse.Namespace) -> int:
    """Print what the client says of itself.

    Returns:
        0 when it runs, and is connected as far as it says so, else 7.
    """
    folder = SiteFolder(Path(arguments.folder))
    connection, settings = read_connection(folder.connection), load_settings(folder.settings)
    standing = read_standing(folder.standing)
    waiting = Approvals(folder.approvals, folder.pending).waiting()
    running = holder(folder.lock, "the client") is not None
    health = None if settings.health is None else _health(settings.health)
    if health is not None and health.get("site") != connection.site:
        health = None  # another site's client has the address
    if arguments.json:
        print_json(
            {
                "site": connection.site,
                "federation": connection.federation,
                "server": connection.server,
                "standing": standing.state,
                "running": running,
                "health": health,
                "waiting": [{"run": each.subject.run, "id": each.subject.id} for each in waiting],
            }
        )
    else:
        said = _said(health, running=running, address=settings.health)
        say(f"{connection.site} of {connection.federation}: {standing.state}; {said}")
        for each in waiting:
            say(f"  waits for you: {each.subject.run} [{each.subject.id}] since {each.since}")
    well = settings.health is None or (health is not None and health.get("status") == "ok")
    return 0 if running and well else _STOPPED


def _health(address: str) -> dict[str, Any] | None:
    """Ask the client itself; None where nobody answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://{address}/health", timeout=_SECONDS) as answer:
            body = answer.read(_MOST_BYTES)
    except urllib.error.HTTPError as error:
        body = error.read(_MOST_BYTES)
    except OSError:
        return None
    try:
        health = json.loads(body)
    except ValueError:
        return None
    return health if isinstance(health, dict) else None


def _said(health: dict[str, Any] | None, *, running: bool, address: str | None) -> str:
    if not running:
        return "NO CLIENT RUNS"
    if health is None:
        why = "client.yaml switches health off" if address is None else f"nothing of it answers at {address}"
        return f"the client runs, {why}"
    connected = "connected" if health.get("connected") else "NOT CONNECTED"
    busy = f", run {health['run']}, round {health['round']}" if health.get("run") else ""
    return f"the client runs, {connected}{busy}"
