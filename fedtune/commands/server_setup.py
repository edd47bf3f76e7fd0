"""``fedtune server init``, ``enrol`` and ``remove``: what the coordinator's folder holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from fedtune.commands.keys_authority import chosen_passphrase
from fedtune.commands.reporting import print_json, say
from fedtune.commands.roster_view import described, lines_of_changes, lines_of_roster
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.setup import enrol_sites, initialise, remove
from fedtune.keys.certificates import certificate_hash, utc_now
from fedtune.keys.private import public_hash
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.roster import fingerprint as roster_fingerprint

__all__ = ["run_enrol", "run_init", "run_remove"]


def run_init(arguments: argparse.Namespace) -> int:
    """Make a coordinator's folder.

    Returns:
        0.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    made = initialise(
        folder.path,
        federation=arguments.federation,
        dns=arguments.dns,
        ip=arguments.ip,
        port=arguments.port,
        superlink_port=arguments.superlink_port,
        now=utc_now(),
        passphrase=chosen_passphrase(arguments),
    )
    coordinator = fingerprint(made.authority.coordinator)
    if arguments.json:
        print_json(
            {
                "federation": arguments.federation,
                "address": made.address,
                "settings": str(folder.settings),
                "fingerprints": {
                    "coordinator": coordinator,
                    "authority": fingerprint(certificate_hash(made.authority.certificate)),
                },
            }
        )
        return 0
    say(f"{folder.path}: the coordinator of {arguments.federation}; sites connect to {made.address}")
    say(f"  coordinator  {coordinator}")
    say("Read this fingerprint to each site's operator, over the telephone. Then")
    say(f"  fedtune server enrol {folder.path} REQUEST…   answers what sites send")
    say(f"  fedtune server start {folder.path}            lets them connect")
    return 0


def run_enrol(arguments: argparse.Namespace) -> int:
    """Answer sites' requests.

    Returns:
        0.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    members = enrol_sites(folder, [Path(name) for name in arguments.requests], now=utc_now())
    shown = roster_fingerprint(members.roster.hash)
    if arguments.json:
        print_json(
            {
                "roster": {"roster": str(folder.roster)} | described(members.roster),
                "sites": [
                    {
                        "site": each.request.site,
                        "bundle": str(each.path),
                        "fingerprints": {
                            "identity": fingerprint(each.request.entry.identity),
                            "node_key": fingerprint(public_hash(each.request.node_key)),
                        },
                    }
                    for each in members.enrolled
                ],
            }
        )
        return 0
    for each in members.enrolled:
        say(f"{each.path}: for {each.request.site}, identity {fingerprint(each.request.entry.identity)}")
    for line in (*lines_of_roster(members.roster), *lines_of_changes(members.roster, members.before)):
        say(line)
    say("Before you send a bundle: hear the identity's fingerprint from the site's operator over another")
    say(f"channel. Sites compare the roster's fingerprint, {shown}, with each other, not with you.")
    if members.before is not None and members.before != members.roster:
        say(f"Sites of version {members.before.version} have to accept version {members.roster.version}:")
        say(f"send them {folder.roster_version(members.roster.version)}")
    return 0


def run_remove(arguments: argparse.Namespace) -> int:
    """Remove a site.

    Returns:
        0.
    """
    folder = CoordinatorFolder(Path(arguments.folder))
    removed = remove(folder, arguments.site)
    if arguments.json:
        version = None if removed.roster is None else described(removed.roster)
        print_json({"site": arguments.site, "node_key": removed.node, "roster": version})
        return 0
    say(f"{folder.path}: {arguments.site} is no longer enrolled; its node key {removed.node} stays refused")
    if removed.roster is not None:
        place = folder.roster_version(removed.roster.version)
        say(f"{place}: a new version without {arguments.site}, which the other sites have to accept")
    return 0
