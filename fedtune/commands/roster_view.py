"""A roster as operators read it to each other, and as a program reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fedtune.secagg.roster import Roster, RosterEntry, fingerprint

__all__ = ["described", "lines_of_changes", "lines_of_roster"]


def described(roster: Roster) -> dict[str, Any]:
    """A version's public content; the keys are an interface."""
    return {
        "federation": roster.federation,
        "version": roster.version,
        "previous": roster.previous.hex(),
        "hash": roster.hash.hex(),
        "fingerprint": fingerprint(roster.hash),
        "members": [
            {
                "site": entry.site,
                "fingerprint": fingerprint(entry.identity),
                "public_key": entry.identity.hex(),
                "weight": entry.weight,
                "group": entry.group,
            }
            for entry in _by_name(roster)
        ],
        "countersigned_by": sorted(fingerprint(identity) for identity in roster.vouchers()),
    }


def lines_of_roster(roster: Roster) -> Iterator[str]:
    """Fingerprints come first on each line, so that no name can pass for one."""
    yield f"  fingerprint  {fingerprint(roster.hash)}"
    yield f"  version {roster.version} of {roster.federation}, {len(roster.entries)} sites:"
    for entry in _by_name(roster):
        yield f"    {_line(entry)}"
    for identity in sorted(roster.vouchers()):
        site = roster.members[identity].site if identity in roster.members else "not a member of this version"
        yield f"  countersigned by {fingerprint(identity)}  {site}"


def lines_of_changes(roster: Roster, before: Roster | None) -> Iterator[str]:
    """Who joined and who left since a version; a site with another key did both."""
    if before is None:
        return
    yield f"  since version {before.version}:"
    old, new = set(before.entries), set(roster.entries)
    for sign, entries in (("-", old - new), ("+", new - old)):
        for entry in sorted(entries, key=lambda item: item.site):
            yield f"  {sign} {_line(entry)}"
    if old == new:
        yield "    the same sites"


def _line(entry: RosterEntry) -> str:
    group = f", group {entry.group}" if entry.group else ""
    return f"{fingerprint(entry.identity)}  weight {entry.weight}{group}  {entry.site}"


def _by_name(roster: Roster) -> list[RosterEntry]:
    return sorted(roster.entries, key=lambda entry: entry.site)
