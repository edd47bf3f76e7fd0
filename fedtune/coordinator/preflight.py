"""The ServerApp's part in ``fedtune server preflight``: a question to every site, and a round of one step.

Both are written into a run directory of their own. The aggregate of the dry round is thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

import httpx
from flwr.serverapp import Grid

from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json
from fedtune.coordinator.wanted import PreflightOrder
from fedtune.errors import FedtuneError, RunError
from fedtune.federation.preflight import ask_sites
from fedtune.federation.secure_round import SecureCoordinator
from fedtune.federation.server import run_federation
from fedtune.federation.session import RunSession
from fedtune.federation.wire import PreflightRequest
from fedtune.observability.events import (
    ClientFailed,
    ClientTrained,
    DryRound,
    DrySite,
    Event,
    Preflight,
    RoundAggregated,
    RunFinished,
    SecureSum,
    read_events,
)
from fedtune.observability.memory import peak_memory_mib
from fedtune.observability.run_directory import RunDirectory

__all__ = ["run_preflight"]

Names = Callable[[], Mapping[int, str]]
Secure = Callable[[RunDirectory], SecureCoordinator | None]


def run_preflight(
    grid: Grid,
    config: Config,
    run: RunDirectory,
    order: PreflightOrder,
    *,
    registered: Names,
    secure: Secure,
) -> None:
    """Ask every site, try a round if that is wanted, and write both down; the run directory is closed.

    Args:
        grid: Flower's way to the sites.
        config: Of the dry round, as it holds on this machine.
        run: The run directory, open for writing.
        order: What is asked.
        registered: Name of each node that is enrolled.
        secure: Makes the coordinator's part in secure aggregation; gives None for a plain run.

    Raises:
        RunError: The run directory cannot be written.
    """
    session = RunSession(config=config, run=run, started=time.time(), passing=(httpx.HTTPError,))
    with run:
        session.begin()
        try:
            request = PreflightRequest(
                config=config_to_json(order.config), to_be_approved=order.to_be_approved
            )
            answered = ask_sites(
                grid,
                request,
                run=order.config.name,
                registered=registered,
                timeout_seconds=order.timeout_seconds,
            )
            run.events.append(answered)
            if order.dry_round:
                run.events.append(
                    _dry_round(grid, config, run, answered, registered=registered, secure=secure)
                )
        except BaseException as error:
            # The disk may be what failed: then the log ends with what it has, and the error stands.
            with suppress(RunError):
                run.events.append(_ended(session, *session.ending(error)))
            raise
        run.events.append(_ended(session, "completed", None))


def _ended(
    session: RunSession, status: Literal["completed", "failed", "interrupted"], reason: str | None
) -> RunFinished:
    return RunFinished(
        status=status,
        reason=reason,
        seconds=time.time() - session.started,
        load_seconds=0.0,
        peak_memory_mib=peak_memory_mib(),
    )


def _dry_round(
    grid: Grid,
    config: Config,
    run: RunDirectory,
    answered: Preflight,
    *,
    registered: Names,
    secure: Secure,
) -> DryRound:
    """Try a round with all sites that answered; what stops it is told and not raised."""
    names = frozenset(site.name for site in answered.sites if site.code is None)
    wanted = config.federation.min_replies or 1
    started, before = time.monotonic(), len(read_events(run.events.path))
    stopped: tuple[str, str] | None = None
    if len(names) < wanted:
        stopped = "FT604", f"{len(names)} sites have answered, {wanted} are required"
    else:
        try:
            run_federation(
                grid,
                config,
                run,
                expected_clients=len(names),
                split=None,
                secure=secure(run),
                registered=lambda: {node: name for node, name in registered().items() if name in names},
            )
        except FedtuneError as error:
            stopped = error.problems[0].code, error.problems[0].what
    events = read_events(run.events.path)[before:]
    return _told(events, names, stopped, seconds=time.monotonic() - started)


def _told(
    events: Sequence[Event], names: frozenset[str], stopped: tuple[str, str] | None, *, seconds: float
) -> DryRound:
    sums = [event for event in events if isinstance(event, SecureSum)]
    trained = [event for event in events if isinstance(event, ClientTrained)]
    burnt = next((event for event in sums if not event.opened), None)
    if stopped is None and burnt is not None:
        stopped = "FT921", burnt.reason or "the round is burnt"
    elif stopped is None and not any(isinstance(event, RoundAggregated) for event in events):
        stopped = "FT607", "nothing was aggregated"
    code, reason = stopped or (None, None)
    return DryRound(
        finished=stopped is None,
        code=code,
        reason=reason,
        seconds=seconds,
        uplink_bytes=sum(each.uplink_bytes for each in trained) + sum(each.uplink_bytes for each in sums),
        downlink_bytes=sum(each.downlink_bytes for each in trained)
        + sum(each.downlink_bytes for each in sums),
        sites=tuple(_site(name, events) for name in sorted(names)),
    )


def _site(name: str, events: Sequence[Event]) -> DrySite:
    failed = [each for each in events if isinstance(each, ClientFailed) and each.client == name]
    trained = [each for each in events if isinstance(each, ClientTrained) and each.client == name]
    seconds = trained[-1].finished - trained[-1].started if trained else None
    # Who waited for an approval at first and then trained has not failed.
    last = next((each for each in reversed(failed) if not (trained and each.stage == "hello")), None)
    if last is None or last.stage == "preflight":
        return DrySite(name=name, stage=None, code=None, reason=None, seconds=seconds)
    return DrySite(name=name, stage=last.stage, code=last.code, reason=last.reason, seconds=seconds)
