"""A site that no longer belongs: out of the coordinator's nodes, and out of the roster's next version."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from fedtune.keys.enrolment import node_path, read_node_public, removed_path
from fedtune.keys.names import name_flaws
from fedtune.keys.private import public_from_point, public_hash
from fedtune.keys.problems import Gathered, refusal
from fedtune.keys.storage import existing
from fedtune.observability.disk import disk_errors, sync_directory, write_atomic
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.files import read_roster
from fedtune.secagg.roster import Roster

__all__ = ["Removed", "remove_site"]


@dataclass(frozen=True, kw_only=True)
class Removed:
    """What was done to remove a site.

    Attributes:
        node: Fingerprint of the node key that is no longer enrolled; None if nodes were left alone.
        before: The version of the roster that had the site; None if the roster was left alone.
        roster: The version without it, which the sites accept as any other.
    """

    node: str | None
    before: Roster | None
    roster: Roster | None


def remove_site(
    name: str, *, folder: Path | None = None, roster: Path | None = None, out: Path | None = None
) -> Removed:
    """Remove a site, and remember its node key so that it is not enrolled again.

    Args:
        name: The site's.
        folder: The coordinator's, if the site's node key is to be dropped from it.
        roster: The newest version of the roster, if the next one is to be made without the site.
        out: Where that version is written: a new file. It goes with `roster`.

    Raises:
        FederationError: All problems: FT634 for a version that is there already, FT635, FT636, FT637 for a
            site that is not there, FT918 for a damaged roster.
        RunError: FT705 or FT707. The roster is written first; the command can be repeated.
    """
    found = Gathered()
    found.add("FT635", name_flaws(name, "site"), where="NAME")
    found.refuse()
    before = after = None
    node: bytes | None = None
    if roster is not None:
        with found.part():
            before, after = _without(name, roster)
    if out is not None:
        found.problems += existing([out])
    if folder is not None:
        with found.part():
            node = _enrolled(name, folder)
    found.refuse()
    if after is not None and out is not None:
        write_atomic(out, after.to_json().encode(), kept="nothing was changed", again="repeat the command")
    if folder is not None and node is not None:
        _drop(node_path(folder, name), removed_path(folder, node))
    return Removed(node=None if node is None else fingerprint(node), before=before, roster=after)


def _without(name: str, path: Path) -> tuple[Roster, Roster]:
    before = read_roster(path)
    left = tuple(entry for entry in before.entries if entry.site != name)
    if len(left) == len(before.entries):
        raise refusal(
            "FT637",
            f"version {before.version} has no site {name}",
            where=str(path),
            fix="name a site that `fedtune keys roster show` lists",
        )
    if not left:
        raise refusal("FT637", f"{name} is the only site of version {before.version}", where=str(path))
    return before, before.following(left)


def _enrolled(name: str, folder: Path) -> bytes:
    path = node_path(folder, name)
    if not os.path.lexists(path):
        raise refusal("FT637", f"no site {name} is enrolled here", where=str(path))
    return public_hash(public_from_point(read_node_public(path)))


def _drop(enrolled: Path, removed: Path) -> None:
    with disk_errors(
        enrolled, kept="the site is still enrolled", again="repeat the command without --roster"
    ):
        removed.parent.mkdir(exist_ok=True)
        os.replace(enrolled, removed)
        sync_directory(removed.parent)
        sync_directory(enrolled.parent)
