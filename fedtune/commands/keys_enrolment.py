"""``fedtune keys client``, ``enrol``, ``join`` and ``revoke``: a site comes, and a site goes."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.commands.roster_view import described, lines_of_changes, lines_of_roster
from fedtune.errors import ConfigError, Problem
from fedtune.keys.authority import AUTHORITY_CERTIFICATE
from fedtune.keys.certificates import certificate_hash, utc_now
from fedtune.keys.enrolment import enrol
from fedtune.keys.joining import Answer, accept, check
from fedtune.keys.node import CONNECTION, IDENTITY_KEY, NODE_KEY, make_node, request_path
from fedtune.keys.private import public_hash
from fedtune.keys.removal import remove_site
from fedtune.keys.request import Request
from fedtune.secagg.entry import fingerprint, weight_bucket

__all__ = ["run_client", "run_enrol", "run_join", "run_revoke"]


def run_client(arguments: argparse.Namespace) -> int:
    """Make a site's keys and request, on the site's machine.

    Returns:
        0.
    """
    folder, examples = Path(arguments.out), arguments.weight_from_examples
    request = make_node(
        folder,
        site=arguments.name,
        federation=arguments.federation,
        weight=arguments.weight if examples is None else weight_bucket(examples),
        group=arguments.group,
    )
    path, shown = request_path(folder, request.site), _fingerprints(request)
    if arguments.json:
        print_json(
            {
                "site": request.site,
                "federation": request.federation,
                "weight": request.entry.weight,
                "request": str(path),
                "node_key": str(folder / NODE_KEY),
                "identity": str(folder / IDENTITY_KEY),
                "fingerprints": shown,
            }
        )
        return 0
    say(f"{path}: {request.site} asks to belong to {request.federation}")
    say(f"  identity  {shown['identity']}")
    say(f"  node key  {shown['node_key']}")
    say(
        "Send this file to the coordinator; there is nothing secret in it. The two keys stay on this machine."
    )
    say("Read the identity's fingerprint to the coordinator over another channel, such as the telephone.")
    return 0


def _fingerprints(request: Request) -> dict[str, str]:
    return {
        "identity": fingerprint(request.entry.identity),
        "node_key": fingerprint(public_hash(request.node_key)),
    }


def run_enrol(arguments: argparse.Namespace) -> int:
    """Answer requests, on the coordinator's machine.

    Returns:
        0.
    """
    answers = enrol(
        Path(arguments.ca),
        [Path(name) for name in arguments.requests],
        federation=arguments.federation,
        server=arguments.server,
        out=Path(arguments.out),
        now=utc_now(),
        roster=None if arguments.roster is None else Path(arguments.roster),
    )
    first = answers[0].bundle
    coordinator = fingerprint(first.coordinator)
    authority = fingerprint(certificate_hash(first.authority))
    if arguments.json:
        print_json(
            {
                "federation": first.federation,
                "server": first.server,
                "fingerprints": {"coordinator": coordinator, "authority": authority},
                "sites": [
                    {
                        "site": each.request.site,
                        "bundle": str(each.path),
                        "node_key": str(each.node),
                        "fingerprints": _fingerprints(each.request),
                    }
                    for each in answers
                ],
            }
        )
        return 0
    for each in answers:
        shown = _fingerprints(each.request)
        say(f"{each.path}: for {each.request.site}")
        say(f"  identity  {shown['identity']}")
        say(f"  node key  {shown['node_key']}")
    say(f"coordinator {coordinator}")
    say("Before you send a bundle: hear the identity's fingerprint from the site's operator, over another")
    say("channel, and read the coordinator's to them. A fingerprint that differs is somebody else's request.")
    return 0


def run_join(arguments: argparse.Namespace) -> int:
    """Believe a bundle, on the site's machine.

    Returns:
        0.
    """
    asks = arguments.fingerprint is None
    if asks and not sys.stdin.isatty():
        raise ConfigError(
            Problem(
                code="FT109",
                what="there is no terminal to ask for the fingerprint, and it was not given",
                where="fedtune keys join",
                fix="give --fingerprint TEXT as heard over another channel, or use a terminal",
            )
        )
    folder = Path(arguments.folder)
    answer = check(folder, Path(arguments.bundle), utc_now())
    connection = accept(answer, _heard(answer) if asks else arguments.fingerprint)
    if arguments.json:
        print_json(
            {
                "site": connection.site,
                "federation": connection.federation,
                "server": connection.server,
                "authority": str(folder / AUTHORITY_CERTIFICATE),
                "connection": str(folder / CONNECTION),
                "roster": None if answer.roster_path is None else str(answer.roster_path),
                "fingerprints": {
                    "coordinator": fingerprint(connection.coordinator),
                    "authority": fingerprint(connection.authority),
                },
            }
        )
        return 0
    say(f"{folder}: {connection.site} belongs to {connection.federation} and connects to {connection.server}")
    if answer.roster_path is not None:
        say(f"{answer.roster_path}: a roster, not accepted yet: compare it with other sites, then")
        say(f"  fedtune keys roster accept --pin {folder / 'pin.json'} {answer.roster_path}")
    return 0


def _heard(answer: Answer) -> str:
    """Ask the operator, who sees what would be accepted except for the fingerprint itself."""
    bundle = answer.bundle
    say(f"{answer.path}: for {bundle.site}, of {bundle.federation}")
    say(f"  server     {bundle.server}")
    say(f"  authority  {fingerprint(certificate_hash(bundle.authority))}")
    say(f"  issued     {bundle.issued_at:%Y-%m-%d %H:%M} UTC")
    say("\nAsk the coordinator for its fingerprint over a channel such as the telephone.")
    sys.stderr.write("The fingerprint that you heard: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def run_revoke(arguments: argparse.Namespace) -> int:
    """Remove a site, on the coordinator's machine.

    Returns:
        0.
    """
    _check_revoke(arguments)
    folder, roster, out = (
        None if given is None else Path(given) for given in (arguments.ca, arguments.roster, arguments.out)
    )
    removed = remove_site(arguments.name, folder=folder, roster=roster, out=out)
    if arguments.json:
        version: dict[str, Any] | None = None
        if removed.roster is not None:
            version = {"roster": str(out)} | described(removed.roster)
        print_json({"site": arguments.name, "node_key": removed.node, "roster": version})
        return 0
    if removed.node is not None:
        say(f"{folder}: {arguments.name} is no longer enrolled; its node key {removed.node} stays refused")
    if removed.roster is not None:
        say(f"{out}: a new version without {arguments.name}, which the other sites have to accept")
        for line in (*lines_of_roster(removed.roster), *lines_of_changes(removed.roster, removed.before)):
            say(line)
    return 0


def _check_revoke(arguments: argparse.Namespace) -> None:
    what = None
    if arguments.ca is None and arguments.roster is None:
        what = "it is not said what the site is to be removed from"
    elif (arguments.roster is None) != (arguments.out is None):
        what = "a version of the roster is read and the next is written; one of --roster and --out is missing"
    if what is not None:
        raise ConfigError(
            Problem(
                code="FT109",
                what=what,
                where="fedtune keys revoke",
                fix="give --ca FOLDER, or --roster ROSTER and --out ROSTER, or all three",
            )
        )
