"""``fedtune server run``: a federation with the sites that are enrolled, watched as it goes on."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedtune.commands.reporting import print_json, say
from fedtune.commands.serving import holder
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.status import RunStatus, ServerStatus, read_status
from fedtune.coordinator.wanted import WantedRuns
from fedtune.errors import ConfigError, FederationError, MachineError, Problem, RunError
from fedtune.observability.event_tail import EventTail
from fedtune.observability.events import read_events
from fedtune.observability.progress import progress
from fedtune.observability.run_directory import events_path
from fedtune.observability.summary import summarise
from fedtune.observability.summary_table import print_summary

__all__ = ["DEFAULTS", "composed", "require_possible", "run_run", "serving", "watched"]

DEFAULTS = ("backend=deployment", "secagg=on")
"""What a deployment takes unless the command line says otherwise."""

FIRST_LOOK_SECONDS = 30.0
STARTING_SECONDS = 60.0
"""How long a server may take from its lock to its first status: Flower's SuperLink starts in between."""

POLL_SECONDS = 0.5


def run_run(arguments: argparse.Namespace) -> int:
    """Start a run and watch it, or watch the one that is going on.

    Returns:
        0, or 130 after Ctrl-C: then the run goes on without its watcher.

    Raises:
        ConfigError: A configuration that cannot be run with these sites.
        MachineError: FT669, no server serves this folder.
        RunError: FT665, another run is going on; FT701, there is already a run of this name.
        FederationError: FT613, the run ended without an adapter, with the reason.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    status = serving(folder)
    if arguments.attach:
        name = _going_on(folder, status)
    else:
        config = composed(arguments.overrides)
        require_possible(config, folder)
        WantedRuns(folder.wanted).add(replace(config, runs_dir="runs", resume=False))
        name = config.name
        if arguments.detach:
            say(f"{name} is wanted. To watch it: fedtune server run {folder.path} --attach")
            if arguments.json:
                print_json({"run": name, "folder": str(folder.runs / name)})
            return 0
    try:
        ended = watched(folder, name)
    except KeyboardInterrupt:
        say(f"\n{name} goes on. To watch it again: fedtune server run {folder.path} --attach")
        return 130
    return _told(folder, ended, as_json=arguments.json)


def composed(overrides: Sequence[str]) -> Config:
    """Return the configuration of a deployment's run.

    Raises:
        ConfigError: With all problems.
    """
    chosen = {text.partition("=")[0] for text in overrides}
    defaults = [text for text in DEFAULTS if text.partition("=")[0] not in chosen]
    return compose([*defaults, *overrides])


def serving(folder: CoordinatorFolder) -> ServerStatus:
    """Return what the server knows; one that is just starting is waited for.

    Raises:
        MachineError: FT669, there is none.
    """
    deadline = time.monotonic() + STARTING_SECONDS
    while True:
        pid = holder(folder.lock, "the server")
        status = read_status(folder.status)
        if status is not None and status.is_running and status.pid == pid:
            return status
        if pid is None or time.monotonic() > deadline:
            raise MachineError(
                Problem(
                    code="FT669",
                    what="no server serves this folder",
                    where=str(folder.path),
                    fix=f"start one: fedtune server start {folder.path}",
                )
            )
        time.sleep(POLL_SECONDS)


def _going_on(folder: CoordinatorFolder, status: ServerStatus) -> str:
    wanted = WantedRuns(folder.wanted).all()
    if wanted:
        return wanted[0].name
    if status.run is not None:
        return status.run.name
    raise RunError(
        Problem(
            code="FT706",
            what="no run is going on, and none has been since the server started",
            where=str(folder.path),
            fix=f"start one: fedtune server run {folder.path} KEY=VALUE…",
        )
    )


def require_possible(config: Config, folder: CoordinatorFolder) -> None:
    """Refuse a run that the enrolled sites cannot run, or that is there already.

    Raises:
        ConfigError: With all problems: FT668, FT701.
    """
    problems = []
    sites, federation, secagg = _enrolled(folder), config.federation, config.secagg
    where = f"{folder.nodes}, with {sites} sites enrolled"
    if not sites:
        fix = f"enrol sites: fedtune server enrol {folder.path} REQUEST…"
        problems.append(Problem(code="FT668", what="no site is enrolled", where=where, fix=fix))
    in_round = min(federation.clients_per_round or sites, sites)
    if secagg.enabled and 0 < in_round < secagg.k_min:
        what = f"a round has {in_round} sites, and secure aggregation demands secagg.k_min={secagg.k_min}"
        lower = (
            f"set secagg.k_min={in_round}, as far as the sites' policies allow, or" if in_round > 2 else ""
        )
        fix = f"{lower} enrol more sites".strip()
        problems.append(Problem(code="FT668", what=what, where=where, fix=fix))
    if federation.min_replies is not None and 0 < sites < federation.min_replies:
        what = f"federation.min_replies is {federation.min_replies}: no round could ever count"
        fix = f"set federation.min_replies={sites} or less"
        problems.append(Problem(code="FT668", what=what, where=where, fix=fix))
    names = {entry.stem for entry in folder.nodes.glob("*.pub")}
    unknown = sorted(set(config.aggregation.site_ranks) - names)
    if unknown and sites:
        what = f"aggregation.site_ranks names {', '.join(unknown)}, and no such site is enrolled"
        fix = f"name some of {', '.join(sorted(names))}"
        problems.append(Problem(code="FT668", what=what, where=where, fix=fix))
    path = folder.runs / config.name
    if (path / "rounds.jsonl").exists() and not config.resume:
        fix = "go on with it by resume=true, or give the new one another name="
        what = f"there is already a run named {config.name!r}"
        problems.append(Problem(code="FT701", what=what, where=str(path), fix=fix))
    if problems:
        raise ConfigError(problems)


def _enrolled(folder: CoordinatorFolder) -> int:
    return sum(1 for _ in folder.nodes.glob("*.pub"))


def watched(folder: CoordinatorFolder, name: str) -> RunStatus:
    """Show a run's events until the server says that it has ended."""
    path = folder.runs / name / "rounds.jsonl"
    began = time.time()
    with progress() as observer:
        tail = EventTail(path, [observer])
        while True:
            tail.read()
            status = read_status(folder.status)
            run = None if status is None else status.run
            wanted = any(each.name == name for each in WantedRuns(folder.wanted).all())
            if run is not None and run.name == name and run.has_ended and not wanted:
                tail.read()
                return run
            if (status is None or not status.is_running) and time.time() - began > FIRST_LOOK_SECONDS:
                began = time.time()
                say("the server does not run; the run goes on when it does")
            time.sleep(POLL_SECONDS)


def _told(folder: CoordinatorFolder, run: RunStatus, *, as_json: bool) -> int:
    path = folder.runs / run.name
    if run.state != "completed":
        raise FederationError(
            Problem(
                code="FT613",
                what=f"run {run.name} {run.state.replace('_', ' ')}: {run.reason}",
                where=str(path),
                fix="mend what is named, then run it again with resume=true: complete rounds are kept",
            )
        )
    summary = summarise(read_events(events_path(path)))
    if as_json:
        print_json(summary)
    print_summary(summary)
    say(f"\nreport:  {path / 'report.html'}\nadapter: {path / 'adapter'}")
    return 0
