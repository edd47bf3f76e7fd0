"""``fedtune client init`` and ``join``: a site's folder, from nothing to what `start` needs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fedtune.commands.reporting import print_json, say
from fedtune.commands.roster_view import lines_of_changes, lines_of_roster
from fedtune.errors import ConfigError, Problem
from fedtune.keys.certificates import utc_now
from fedtune.keys.joining import Answer, accept, check
from fedtune.secagg.entry import fingerprint, weight_bucket
from fedtune.secagg.pinning import PinnedRoster
from fedtune.secagg.roster import Roster
from fedtune.site.folder import SiteFolder
from fedtune.site.policy_file import load_policy
from fedtune.site.setup import initialise

__all__ = ["run_init", "run_join"]


def run_init(arguments: argparse.Namespace) -> int:
    """Make a site's folder.

    Returns:
        0.
    """
    examples = arguments.weight_from_examples
    made = initialise(
        Path(arguments.folder),
        site=arguments.name,
        federation=arguments.federation,
        coordinator=arguments.coordinator,
        data=[Path(name) for name in arguments.data],
        model=arguments.model,
        place=arguments.model_place,
        weight=arguments.weight if examples is None else weight_bucket(examples),
        group=arguments.group,
        timezone=arguments.timezone,
        k_min=arguments.k_min,
    )
    identity = fingerprint(made.request.entry.identity)
    if arguments.json:
        print_json(
            {
                "site": made.request.site,
                "federation": made.request.federation,
                "request": str(made.request_path),
                "policy": str(made.folder.policy),
                "settings": str(made.folder.settings),
                "base_model": made.base_model,
                "fingerprints": {"identity": identity},
            }
        )
        return 0
    say(f"{made.folder.path}: {made.request.site}, which asks to belong to {made.request.federation}")
    say(f"  identity  {identity}")
    say(f"Send {made.request_path} to the coordinator, and read them the identity's fingerprint.")
    say(f"Read {made.folder.policy}, change what your site does not allow, and have it signed off.")
    return 0


def run_join(arguments: argparse.Namespace) -> int:
    """Believe a bundle whose signer the policy names, and the roster in it.

    Returns:
        0.

    Raises:
        FedtuneError: FT633, another coordinator has signed it, or it is for another site; FT918, the roster
            does not follow the one that is believed, or has another fingerprint.
        ConfigError: FT109, there is no terminal to ask.
    """
    folder = SiteFolder(Path(arguments.folder))
    policy = load_policy(folder.policy).policy
    answer = check(folder.path, Path(arguments.bundle), utc_now())
    roster = answer.bundle.roster
    heard = arguments.roster_fingerprint
    if roster is not None and heard is None and not sys.stdin.isatty():
        raise ConfigError(
            Problem(
                code="FT109",
                what="there is no terminal to ask for the roster's fingerprint, and it was not given",
                where="fedtune client join",
                fix="give --roster-fingerprint TEXT as another site's operator read it out",
            )
        )
    connection = accept(answer, _coordinator(policy.coordinators, answer))
    if roster is not None:
        _accept_roster(folder, roster, heard)
    if arguments.json:
        print_json(
            {
                "site": connection.site,
                "federation": connection.federation,
                "server": connection.server,
                "roster": None if roster is None else roster.version,
            }
        )
        return 0
    say(f"{folder.path}: {connection.site} belongs to {connection.federation}, and connects to")
    say(f"{connection.server} when you start it: fedtune client start {folder.path}")
    return 0


def _coordinator(coordinators: dict[str, str], answer: Answer) -> str:
    """The fingerprint that the policy names for the bundle's federation."""
    return coordinators.get(answer.bundle.federation, "none that site.yaml names for this federation")


def _accept_roster(folder: SiteFolder, roster: Roster, heard: str | None) -> None:
    pin = PinnedRoster(folder.pin)
    before = pin.pinned
    if before == roster:
        return
    pin.newest_of([roster])
    if heard is None:
        for line in (*lines_of_roster(roster), *lines_of_changes(roster, before)):
            say(line)
        say("\nAsk another site for the roster's fingerprint: the coordinator could invent members.")
        sys.stderr.write("The fingerprint that you heard: ")
        sys.stderr.flush()
        heard = sys.stdin.readline().strip()
    pin.accept_by_operator([roster], heard)
