"""``fedtune client approve``, ``pause``, ``resume``, ``stop`` and ``leave``: what the site's operator
decides.
"""

from __future__ import annotations

import argparse
import getpass
import sys
from pathlib import Path
from typing import Literal

from fedtune.commands.reporting import say
from fedtune.commands.serving import stop_process
from fedtune.errors import ConfigError, FederationError, Problem
from fedtune.keys.joining import read_connection
from fedtune.secagg.identity import Identity
from fedtune.site.approvals import Approvals, Pending, read_standing, write_standing
from fedtune.site.audit import AuditLog
from fedtune.site.audit_events import OperatorActed
from fedtune.site.folder import SiteFolder

__all__ = ["run_approve", "run_leave", "run_pause", "run_resume", "run_stop"]


def run_approve(arguments: argparse.Namespace) -> int:
    """Approve a run, or list those that wait.

    Returns:
        0.

    Raises:
        FederationError: FT646, no such run waits, or several of this name do.
    """
    folder = SiteFolder(Path(arguments.folder))
    approvals = Approvals(folder.approvals, folder.pending)
    waiting = approvals.waiting()
    if arguments.run is None:
        for pending in waiting:
            _show(pending)
        say("nothing waits" if not waiting else "approve one: fedtune client approve FOLDER RUN")
        return 0
    chosen = [each for each in waiting if arguments.run in (each.subject.run, each.subject.id)]
    if len(chosen) != 1:
        raise FederationError(_not_one(arguments.run, chosen, waiting))
    (pending,) = chosen
    _show(pending)
    _audit(folder, arguments, "approve", f"{pending.subject.run} {pending.subject.config}")
    approvals.approve(pending.subject, operator=_operator(arguments))
    say(f"{pending.subject.run} may begin; it waits again if its configuration, model or bundle changes")
    return 0


def run_pause(arguments: argparse.Namespace) -> int:
    """Take part in nothing, from this moment on.

    Returns:
        0.

    Raises:
        FederationError: FT646, the site has left.
    """
    _require_belonging(arguments)
    return _stand(arguments, "paused", "pause", "paused; what is being trained ends with its next step")


def run_resume(arguments: argparse.Namespace) -> int:
    """Take part again.

    Returns:
        0.

    Raises:
        FederationError: FT646, the site has left.
    """
    _require_belonging(arguments)
    return _stand(arguments, "open", "resume", "the site takes part again")


def run_stop(arguments: argparse.Namespace) -> int:
    """End the client on this machine.

    Returns:
        0, also where none was running.
    """
    folder = SiteFolder(Path(arguments.folder))
    ended = stop_process(folder.lock, "the client")
    if ended:
        _audit(folder, arguments, "stop", read_connection(folder.connection).site)
    say("the client has ended" if ended else "no client serves this folder")
    return 0


def run_leave(arguments: argparse.Namespace) -> int:
    """Leave the federation for good.

    Returns:
        0.

    Raises:
        ConfigError: FT109, it was not confirmed.
    """
    folder = SiteFolder(Path(arguments.folder))
    site = read_connection(folder.connection).site
    if not arguments.yes and not _confirmed(site):
        raise ConfigError(
            Problem(
                code="FT109",
                what="leaving was not confirmed",
                where="fedtune client leave",
                fix=f"type the site's name, {site}, or give --yes",
            )
        )
    _stand(arguments, "left", "leave", f"{site} has left; nothing is answered any more")
    folder.node_key.unlink(missing_ok=True)
    stop_process(folder.lock, "the client")
    say("The node key is destroyed: this site cannot connect again. The audit log stays.")
    say("Tell the coordinator, who removes the site from the roster.")
    return 0


def _confirmed(site: str) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"Leaving cannot be undone. Type {site} to leave: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() == site


def _require_belonging(arguments: argparse.Namespace) -> None:
    if read_standing(SiteFolder(Path(arguments.folder)).standing).state == "left":
        raise FederationError(
            Problem(
                code="FT646",
                what="this site has left the federation for good",
                where=arguments.folder,
                fix="make a new site's folder: fedtune client init",
            )
        )


def _stand(
    arguments: argparse.Namespace,
    state: Literal["open", "paused", "left"],
    action: Literal["pause", "resume", "leave"],
    said: str,
) -> int:
    folder = SiteFolder(Path(arguments.folder))
    site = read_connection(folder.connection).site
    # What takes part again is written down first; what ends acts first, even where no log can be written.
    if state == "open":
        _audit(folder, arguments, action, site, reason=arguments.reason)
    write_standing(folder.standing, state, operator=_operator(arguments), reason=arguments.reason)
    if state != "open":
        _audit(folder, arguments, action, site, reason=arguments.reason)
    say(said)
    return 0


def _audit(
    folder: SiteFolder,
    arguments: argparse.Namespace,
    action: Literal["approve", "pause", "resume", "stop", "leave"],
    subject: str,
    *,
    reason: str = "",
) -> None:
    log = AuditLog(folder.audit_log, Identity.load(folder.audit_key))
    log.append(OperatorActed(action=action, subject=subject, operator=_operator(arguments), reason=reason))


def _operator(arguments: argparse.Namespace) -> str:
    return arguments.operator or getpass.getuser()


def _show(pending: Pending) -> None:
    say(f"{pending.subject.run}  [{pending.subject.id}]  waits since {pending.since}")
    for line in pending.summary:
        say(f"    {line}")


def _not_one(asked: str, chosen: list[Pending], waiting: list[Pending]) -> Problem:
    if chosen:
        ids = ", ".join(each.subject.id for each in chosen)
        what, fix = f"{len(chosen)} runs named {asked!r} wait", f"name one by its id: {ids}"
    else:
        names = ", ".join(each.subject.run for each in waiting) or "none"
        what, fix = f"no run {asked!r} waits for approval", f"runs that wait: {names}"
    return Problem(code="FT646", what=what, where="fedtune client approve", fix=fix)
