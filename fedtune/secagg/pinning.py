"""Which version of the roster a site believes: the one in its pin file, and no older one ever again.

A new version is accepted after the site's operator confirmed its fingerprint over another channel, or when
a quorum of the members pinned *before* it countersigned. Every version in between must link to its
predecessor, so nobody can be shown two histories.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fedtune.observability.disk import write_atomic
from fedtune.secagg.entry import same_fingerprint
from fedtune.secagg.files import read_roster
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import Roster, fingerprint
from fedtune.secagg.thresholds import threshold

__all__ = ["PinnedRoster"]


class PinnedRoster:
    """A site's pin file: the accepted roster, replaced atomically.

    Args:
        path: JSON file of the accepted version; need not exist before the first acceptance.

    Raises:
        SecureAggregationError: FT918, the file is damaged or cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._roster = read_roster(path) if os.path.lexists(path) else None

    @property
    def pinned(self) -> Roster | None:
        """The accepted version, or None before the first acceptance."""
        return self._roster

    @property
    def roster(self) -> Roster:
        """The accepted version.

        Raises:
            SecureAggregationError: FT918, none has been accepted yet.
        """
        if self._roster is None:
            raise refusal("FT918", "no roster has been accepted at this site yet", where=str(self._path))
        return self._roster

    def accept_by_operator(self, chain: Sequence[Roster], confirmed: str) -> Roster:
        """Pin the last version of `chain`, whose fingerprint the operator got over another channel.

        Args:
            chain: Versions that follow the pinned one, oldest first. The very first acceptance may start
                at any version, because nothing is pinned yet.
            confirmed: The fingerprint as the operator typed it; case, spaces and hyphens do not matter.

        Raises:
            SecureAggregationError: FT918, the chain does not follow or the fingerprint is another one.
            RunError: FT705 or FT707, the pin file cannot be written; the version before stays pinned.
        """
        newest = self.newest_of(chain)
        expected = fingerprint(newest.hash)
        if not same_fingerprint(confirmed, expected):
            raise refusal(
                "FT918",
                f"version {newest.version} has the fingerprint {expected}, "
                f"the operator confirmed {confirmed!r}",
                where=str(self._path),
            )
        return self._pin(newest)

    def accept_by_quorum(self, chain: Sequence[Roster], *, quorum: int | None = None) -> Roster:
        """Pin the last version of `chain`, each version vouched for by members of the one before.

        Args:
            chain: Versions that follow the pinned one, oldest first.
            quorum: Countersignatures needed from members of the version before; by default
                ⌊2n/3⌋ + 1 of its n members, and never fewer.

        Raises:
            SecureAggregationError: FT918, with the version that lacks countersignatures.
            RunError: FT705 or FT707, the pin file cannot be written; the version before stays pinned.
        """
        before = self.roster
        newest = self.newest_of(chain)
        for version in chain:
            needed = max(threshold(len(before.entries)), quorum or 0)
            vouched = len(version.vouchers() & before.members.keys())
            if vouched < needed:
                raise refusal(
                    "FT918",
                    f"version {version.version} has {vouched} countersignatures of pinned members, "
                    f"{needed} are needed",
                    where=str(self._path),
                )
            before = version
        return self._pin(newest)

    def newest_of(self, chain: Sequence[Roster]) -> Roster:
        """The last version of a chain that follows the pinned version without a gap; nothing is pinned.

        Raises:
            SecureAggregationError: FT918, with the version that does not follow.
        """
        if not chain:
            raise refusal("FT918", "there is no version to accept", where=str(self._path))
        before = self._roster
        for version in chain:
            if before is not None and (
                version.version != before.version + 1
                or version.previous != before.hash
                or version.federation != before.federation
            ):
                raise refusal(
                    "FT918",
                    f"version {version.version} of {version.federation!r} does not follow version "
                    f"{before.version} of {before.federation!r}; versions never go back or fork",
                    where=str(self._path),
                )
            before = version
        return chain[-1]

    def _pin(self, roster: Roster) -> Roster:
        write_atomic(
            self._path,
            roster.to_json().encode(),
            kept="the version that was pinned before",
            again="accept the roster again",
        )
        self._roster = roster
        return roster
