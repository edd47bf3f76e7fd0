"""The arguments of ``fedtune server``."""

from __future__ import annotations

import argparse

from fedtune.commands.arguments import Commands, add_json, count, overrides
from fedtune.commands.server_backup_arguments import add_backup

__all__ = ["add_server"]


def add_server(commands: Commands) -> None:
    """Add what stands below ``fedtune server``."""
    init = _with_folder(commands, "init", "make the coordinator's folder: authority, certificate, settings")
    init.add_argument("--federation", required=True, metavar="NAME", help="the federation's name")
    init.add_argument(
        "--dns", action="append", default=[], metavar="HOST", help="a name that sites connect to; repeatable"
    )
    init.add_argument(
        "--ip", action="append", default=[], metavar="ADDRESS", help="an address likewise; repeatable"
    )
    init.add_argument("--port", type=count, default=9092, metavar="N", help="where sites connect (9092)")
    init.add_argument(
        "--superlink-port", type=count, default=9091, metavar="N", help="of the SuperLink, on loopback (9091)"
    )
    under = init.add_mutually_exclusive_group()
    under.add_argument(
        "--passphrase", action="store_true", help="ask for a passphrase of the authority's key"
    )
    under.add_argument("--passphrase-file", metavar="FILE", help="its first line is that passphrase")
    add_json(init)

    enrol = _with_folder(commands, "enrol", "answer sites' requests, and make the roster's next version")
    enrol.add_argument("requests", nargs="+", metavar="REQUEST", help="files that sites sent")
    add_json(enrol)

    remove = _with_folder(commands, "remove", "a site belongs no more: refuse its node, and take it out")
    remove.add_argument("site", metavar="SITE", help="the site's name")
    add_json(remove)

    start = _with_folder(
        commands, "start", "serve sites until stopped: the SuperLink, and the gate in front of it"
    )
    start.add_argument("--insecure", action="store_true", help="without TLS: a trial on this machine alone")

    preflight = _with_folder(commands, "preflight", "ask every site whether it is ready for a run")
    preflight.add_argument(
        "--no-dry-round", action="store_true", help="only ask; do not try a round of one step"
    )
    add_json(preflight)
    overrides(preflight)

    run = _with_folder(commands, "run", "run a federation with the sites that are enrolled")
    how = run.add_mutually_exclusive_group()
    how.add_argument("--detach", action="store_true", help="start it and leave")
    how.add_argument("--attach", action="store_true", help="only watch the run that is going on")
    add_json(run)
    overrides(run)

    add_json(_with_folder(commands, "status", "sites, and the run: who was in which round, and why not"))

    add_backup(commands)
    stop = _with_folder(commands, "stop", "stop a run, or the server")
    stop.add_argument("run", nargs="?", metavar="RUN", help="the run; without it, the server is stopped")


def _with_folder(commands: Commands, name: str, purpose: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".")
    parser.add_argument("folder", metavar="FOLDER", help="the coordinator's folder")
    return parser
