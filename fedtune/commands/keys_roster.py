"""``fedtune keys roster``: entries, versions, and which version this site believes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedtune.commands.reporting import print_json, say
from fedtune.commands.roster_view import described, lines_of_changes, lines_of_roster
from fedtune.errors import ConfigError, Problem, SecureAggregationError
from fedtune.keys.node import REQUEST_SUFFIX
from fedtune.keys.request import read_request
from fedtune.observability.disk import write_atomic
from fedtune.secagg.entry import Application, apply_for_roster, fingerprint, weight_bucket
from fedtune.secagg.files import gathered, read_application, read_roster, refuse_existing
from fedtune.secagg.identity import Identity
from fedtune.secagg.pinning import PinnedRoster
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import GENESIS, Roster

__all__ = ["run_roster"]


def run_roster(arguments: argparse.Namespace) -> int:
    """Run the command below ``keys roster``.

    Returns:
        0.
    """
    commands = {
        "entry": _entry,
        "make": _make,
        "show": _show,
        "accept": _accept,
        "countersign": _countersign,
    }
    return commands[arguments.roster_command](arguments)


def _entry(arguments: argparse.Namespace) -> int:
    examples = arguments.weight_from_examples
    identity = Identity.load(Path(arguments.identity))
    application = apply_for_roster(
        identity,
        federation=arguments.federation,
        site=arguments.site,
        weight=arguments.weight if examples is None else weight_bucket(examples),
        group=arguments.group,
    )
    out, entry = Path(arguments.out), application.entry
    _write(out, application.to_json())
    if arguments.json:
        print_json(
            {
                "entry": str(out),
                "federation": application.federation,
                "site": entry.site,
                "weight": entry.weight,
                "group": entry.group,
                "fingerprint": fingerprint(entry.identity),
            }
        )
        return 0
    say(f"{out}: {entry.site} applies to {application.federation} with weight {entry.weight}")
    say(f"  fingerprint  {fingerprint(entry.identity)}")
    say("Send this file to the coordinator; there is nothing secret in it.")
    return 0


def _make(arguments: argparse.Namespace) -> int:
    out, problems = Path(arguments.out), list[Problem]()
    before: Roster | None = None
    applications: list[Application] = []
    with gathered(problems):
        refuse_existing(out, "a version of the roster")
    for name in arguments.entries:
        with gathered(problems):
            applications.append(_for_federation(Path(name), arguments.federation))
    if arguments.after is not None:
        with gathered(problems):
            before = _predecessor(Path(arguments.after), arguments.federation)
    if problems:
        raise SecureAggregationError(problems)
    entries = tuple(application.entry for application in applications)
    roster = (
        before.following(entries)
        if before
        else Roster(federation=arguments.federation, version=1, previous=GENESIS, entries=entries)
    )
    _write(out, roster.to_json())
    return _print(arguments, {"roster": str(out)}, f"{out}: a new version", roster, before=before)


def _for_federation(path: Path, federation: str) -> Application:
    application = _applied(path)
    if application.federation != federation:
        raise refusal(
            "FT929",
            f"{application.entry.site} applies to {application.federation!r}, not to {federation!r}",
            where=str(path),
        )
    return application


def _applied(path: Path) -> Application:
    """A site's entry, which is also in its request for enrolment."""
    if path.name.endswith(REQUEST_SUFFIX):
        return read_request(path).application
    return read_application(path)


def _predecessor(path: Path, federation: str) -> Roster:
    before = read_roster(path)
    if before.federation != federation:
        raise refusal(
            "FT918", f"this is a roster of {before.federation!r}, not of {federation!r}", where=str(path)
        )
    return before


def _show(arguments: argparse.Namespace) -> int:
    path = Path(arguments.roster)
    return _print(arguments, {"roster": str(path)}, f"{path}: read, not accepted", read_roster(path))


def _accept(arguments: argparse.Namespace) -> int:
    asks = arguments.fingerprint is None and not arguments.quorum
    if asks and not sys.stdin.isatty():
        raise ConfigError(
            Problem(
                code="FT109",
                what="there is no terminal to ask for the fingerprint, and it was not given",
                where="fedtune keys roster accept",
                fix="give --fingerprint TEXT as heard over another channel, or --quorum, or use a terminal",
            )
        )
    path, problems = Path(arguments.pin), list[Problem]()
    chain: list[Roster] = []
    with gathered(problems):
        pin = PinnedRoster(path)
    for name in arguments.rosters:
        with gathered(problems):
            chain.append(read_roster(Path(name)))
    if problems:
        raise SecureAggregationError(problems)
    before, newest = pin.pinned, pin.newest_of(chain)
    if arguments.quorum:
        pin.accept_by_quorum(chain)
    else:
        pin.accept_by_operator(chain, _heard(newest, before) if asks else arguments.fingerprint)
    return _print(arguments, {"pin": str(path)}, f"{path}: accepted", newest, before=before, brief=asks)


def _heard(newest: Roster, before: Roster | None) -> str:
    """Ask the operator, who sees what would be accepted."""
    for line in (*lines_of_roster(newest), *lines_of_changes(newest, before)):
        say(line)
    say("\nAsk another site for the roster's fingerprint over a channel that the coordinator does not run.")
    sys.stderr.write("The fingerprint that you heard: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _countersign(arguments: argparse.Namespace) -> int:
    path, problems = Path(arguments.roster), list[Problem]()
    with gathered(problems):
        identity = Identity.load(Path(arguments.identity))
    with gathered(problems):
        pin = PinnedRoster(Path(arguments.pin))
        before = pin.roster
    with gathered(problems):
        roster = read_roster(path)
    if problems:
        raise SecureAggregationError(problems)
    pin.newest_of([roster])
    if identity.public not in before.members:
        raise refusal(
            "FT918",
            f"{fingerprint(identity.public)} is no member of version {before.version}, which is pinned: "
            "its countersignature would not count",
            where=arguments.identity,
        )
    if identity.public not in roster.vouchers():
        roster = roster.countersigned(identity)
    out = path if arguments.out is None else Path(arguments.out)
    _write(out, roster.to_json())
    return _print(arguments, {"roster": str(out)}, f"{out}: countersigned", roster, before=before)


def _write(path: Path, text: str) -> None:
    write_atomic(path, text.encode(), kept="what was there under this name", again="repeat the command")


def _print(
    arguments: argparse.Namespace,
    file: dict[str, str],
    title: str,
    roster: Roster,
    *,
    before: Roster | None = None,
    brief: bool = False,
) -> int:
    """Print a version; `brief` where a person has just seen it."""
    if arguments.json:
        print_json(file | described(roster))
        return 0
    say(title)
    if not brief:
        for line in (*lines_of_roster(roster), *lines_of_changes(roster, before)):
            say(line)
    return 0
