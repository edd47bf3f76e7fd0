"""The roster: who belongs to the federation, as a hash chain of versions with self-signed entries.

The coordinator hands rosters out and authorises none: if it could enrol members, it would enrol four of
its own around one victim. Whether a site believes a version is decided in `pinning`.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.canonical import digest
from fedtune.secagg.entry import (
    RosterEntry,
    entry_flaws,
    entry_from_json,
    fingerprint,
    name_flaws,
    sign_entry,
    weight_bucket,
)
from fedtune.secagg.fields import exactly, hex_bytes, integer, listed, parse_json, printable, string
from fedtune.secagg.identity import IDENTITY_BYTES, SIGNATURE_BYTES, Identity, verify
from fedtune.secagg.problems import problem, refusal
from fedtune.secagg.wire import HASH_BYTES, MAX_MEMBERS

__all__ = ["GENESIS", "Roster", "RosterEntry", "fingerprint", "parse_roster", "sign_entry", "weight_bucket"]

GENESIS: Final = bytes(HASH_BYTES)
"""The predecessor of version 1."""

_FORMAT: Final = "fedtune-roster/1"


@dataclass(frozen=True, kw_only=True)
class Roster:
    """One version of the roster; entries are held in the order of their identities.

    Raises:
        SecureAggregationError: FT918 with every entry that is wrong: a signature, a duplicate, a weight.
    """

    federation: str
    version: int
    previous: bytes
    entries: tuple[RosterEntry, ...]
    countersignatures: tuple[tuple[bytes, bytes], ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.entries, key=lambda entry: entry.identity))
        object.__setattr__(self, "entries", ordered)
        problems = _roster_problems(self)
        if problems:
            raise SecureAggregationError(problems)

    @cached_property
    def hash(self) -> bytes:
        """Head of the chain up to this version; countersignatures are beside it, not in it."""
        bodies = [entry.body(self.federation) + entry.signature for entry in self.entries]
        return digest("roster", self.federation, self.version, self.previous, *bodies)

    @cached_property
    def members(self) -> dict[bytes, RosterEntry]:
        return {entry.identity: entry for entry in self.entries}

    @cached_property
    def groups(self) -> dict[str, frozenset[bytes]]:
        """Group name to the identities in it."""
        names = {entry.group for entry in self.entries if entry.group}
        return {
            name: frozenset(entry.identity for entry in self.entries if entry.group == name) for name in names
        }

    def site(self, identity: bytes) -> str:
        """The member's name, or a piece of its key where it is not a member."""
        entry = self.members.get(identity)
        return entry.site if entry else f"unknown {identity.hex()[:16]}"

    def following(self, entries: tuple[RosterEntry, ...]) -> Roster:
        """The next version, with these entries."""
        return Roster(
            federation=self.federation, version=self.version + 1, previous=self.hash, entries=entries
        )

    def countersigned(self, *identities: Identity) -> Roster:
        """This version with signatures of members that vouch for it."""
        added = tuple(
            (identity.public, identity.sign("roster countersignature", self.hash)) for identity in identities
        )
        return Roster(
            federation=self.federation,
            version=self.version,
            previous=self.previous,
            entries=self.entries,
            countersignatures=self.countersignatures + added,
        )

    def vouchers(self) -> frozenset[bytes]:
        """Identities whose countersignature on this version is valid."""
        return frozenset(
            signer
            for signer, signature in self.countersignatures
            if verify(signer, "roster countersignature", self.hash, signature)
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": _FORMAT,
                "federation": self.federation,
                "version": self.version,
                "previous": self.previous.hex(),
                "entries": [entry.as_json() for entry in self.entries],
                "countersignatures": [
                    {"identity": signer.hex(), "signature": signature.hex()}
                    for signer, signature in self.countersignatures
                ],
            },
            indent=1,
        )


def _roster_problems(roster: Roster) -> list[Problem]:
    problems = []
    where = f"roster version {roster.version}"
    if roster.version < 1 or (roster.version == 1) != (roster.previous == GENESIS):
        problems.append(
            problem("FT918", f"version {roster.version} follows {roster.previous.hex()}", where=where)
        )
    if len(roster.entries) > MAX_MEMBERS:
        problems.append(
            problem("FT918", f"{len(roster.entries)} entries, at most {MAX_MEMBERS}", where=where)
        )
    problems += [problem("FT918", flaw, where=where) for flaw in name_flaws(roster.federation, "federation")]
    sites = Counter(entry.site for entry in roster.entries)
    identities = Counter(entry.identity for entry in roster.entries)
    for entry in roster.entries:
        name = printable(entry.site)
        flaws = entry_flaws(entry, roster.federation)
        if sites[entry.site] > 1 or identities[entry.identity] > 1:
            flaws.append(f"{name} is there more than once")
        problems += [problem("FT918", flaw, where=f"{where}, {name}") for flaw in flaws]
    return problems


def parse_roster(text: str | bytes) -> Roster:
    """Read a roster that came from outside: JSON with exactly the keys that `Roster.to_json` writes.

    Raises:
        SecureAggregationError: FT918, the text is not such a roster or an entry in it is wrong.
    """
    try:
        raw = parse_json(text)
        exactly(
            raw,
            "format",
            "federation",
            "version",
            "previous",
            "entries",
            "countersignatures",
            form=_FORMAT,
        )
        return Roster(
            federation=string(raw["federation"]),
            version=integer(raw["version"]),
            previous=hex_bytes(raw["previous"], HASH_BYTES),
            entries=tuple(entry_from_json(item) for item in listed(raw["entries"])),
            countersignatures=tuple(_countersignature(item) for item in listed(raw["countersignatures"])),
        )
    except (ValueError, TypeError) as error:
        raise refusal("FT918", f"not a roster: {error}", where="roster") from None


def _countersignature(raw: Any) -> tuple[bytes, bytes]:
    exactly(raw, "identity", "signature")
    return hex_bytes(raw["identity"], IDENTITY_BYTES), hex_bytes(raw["signature"], SIGNATURE_BYTES)
