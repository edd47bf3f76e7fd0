"""What lies in a site's folder: its keys and certificates, the roster it pinned, and its policy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from cryptography import x509

from fedtune.keys.authority import AUTHORITY_CERTIFICATE, read_certificate
from fedtune.keys.inspection import Inspected, inspect
from fedtune.keys.joining import Connection, read_connection
from fedtune.keys.node import CONNECTION, IDENTITY_KEY, NODE_KEY, request_path
from fedtune.keys.private import point, read_node_key
from fedtune.keys.request import read_request
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.fields import printable
from fedtune.secagg.identity import Identity
from fedtune.secagg.pinning import PinnedRoster
from fedtune.secagg.roster import Roster
from fedtune.site.checkup.making import as_finding
from fedtune.site.findings import Finding, failed, ok, warning
from fedtune.site.folder import SiteFolder
from fedtune.site.policy_file import PolicyFile, load_policy

__all__ = ["Material"]

_MADE_BY: Final = {
    NODE_KEY: "make the site's keys: fedtune client init",
    IDENTITY_KEY: "make the site's keys: fedtune client init",
    CONNECTION: "join with the coordinator's bundle: fedtune client join",
    AUTHORITY_CERTIFICATE: "join with the coordinator's bundle: fedtune client join",
}
"""File -> what makes it; a site needs each of them."""


@dataclass(kw_only=True)
class Material:
    """A site's folder, read check by check; later checks use what earlier ones could read.

    Attributes:
        folder: The folder.
        now: This moment.
        connection: Whom the site trusts and where it connects; None as long as that is not known.
        authority: The certificate that its server's has to be signed with, likewise.
        roster: The version it pinned, likewise.
        policy: What it allows, likewise.
    """

    folder: SiteFolder
    now: datetime
    connection: Connection | None = None
    authority: x509.Certificate | None = None
    roster: Roster | None = None
    policy: PolicyFile | None = None

    def keys(self) -> Iterator[Finding]:
        """Every file of key material: there, readable, its owner's alone, and not ended."""
        lacking = [
            failed("FT840", f"there is no {name} in {self.folder.path}", fix=made_by)
            for name, made_by in _MADE_BY.items()
            if not os.path.lexists(self.folder.path / name)
        ]
        known = {*_MADE_BY, self.folder.pin.name, self.folder.audit_key.name}
        files = [
            file
            for file in inspect(self.folder.path, self.now)
            if file.path.name in known or file.path.name.endswith(".request.json")
        ]
        wrong = [as_finding(problem) for file in files for problem in file.problems]
        ending = [finding for file in files for finding in _ending(file)]
        yield from lacking
        yield from wrong
        yield from ending
        if not lacking + wrong:
            names = ", ".join(file.path.name for file in files)
            yield ok(f"{names}: all there, and private keys are their owner's alone")

    def joined(self) -> Finding:
        """What the site accepted when it joined, and whether its keys are those that it asked with."""
        connection = read_connection(self.folder.connection)
        self.authority = read_certificate(self.folder.authority, "the authority's certificate")
        self.connection = connection
        request = read_request(request_path(self.folder.path, connection.site))
        own = [
            (NODE_KEY, point(read_node_key(self.folder.node_key).public_key()) == request.node),
            (IDENTITY_KEY, self._identity().public == request.entry.identity),
            (CONNECTION, connection.request == request.hash),
        ]
        strange = [name for name, fits in own if not fits]
        if strange:
            return failed(
                "FT840",
                f"{', '.join(strange)} and the request of {connection.site} do not belong together",
                fix="restore the folder's files from one backup, or make new keys and join again",
            )
        return ok(
            f"{printable(connection.site)} of {printable(connection.federation)}, server {connection.server}"
            f", coordinator {fingerprint(connection.coordinator)}"
        )

    def pinned(self, *, secure: bool) -> Finding:
        """The roster that the site pinned, and whether it stands in it.

        Args:
            secure: Whether the policy or the configuration asks for secure aggregation, which needs one.
        """
        roster = PinnedRoster(self.folder.pin).pinned
        if roster is None:
            fix = "join again with a bundle that has one: fedtune client join"
            if secure:
                return failed("FT841", "secure aggregation needs a roster, and none was accepted", fix=fix)
            return warning("no roster was accepted; only secure aggregation needs one", fix=fix)
        self.roster = roster
        said = f"version {roster.version} of {printable(roster.federation)}, {len(roster.entries)} sites"
        if self.connection is not None and roster.federation != self.connection.federation:
            return failed(
                "FT841",
                f"{said}: this site joined {printable(self.connection.federation)}",
                fix="join again with a bundle of the federation that this site joined",
            )
        entry = roster.members.get(self._identity().public)
        if entry is None:
            return failed(
                "FT841",
                f"{said}: this site's identity is not in it",
                fix="send the site's request to the coordinator for the next version, and accept that",
            )
        return ok(f"{said}, this one as {printable(entry.site)}; fingerprint {fingerprint(roster.hash)}")

    def policy_file(self) -> Finding:
        """What the site allows; every problem of the file."""
        self.policy = load_policy(self.folder.policy)
        policy = self.policy.policy
        text = f"is complete, SHA-256 {self.policy.sha256[:16]}…"
        if self.connection is None:
            return ok(text)
        federation, coordinator = self.connection.federation, fingerprint(self.connection.coordinator)
        if policy.coordinators.get(federation) != coordinator:
            return failed(
                "FT640",
                f"coordinators does not name {printable(federation)} with the fingerprint {coordinator}, "
                "as this site joined it",
                fix=f"write {printable(federation)}: {coordinator} under coordinators, if you mean this one",
            )
        return ok(f"{text}; it names the coordinator whom this site joined")

    def _identity(self) -> Identity:
        return Identity.load(self.folder.identity)


def _ending(file: Inspected) -> Iterator[Finding]:
    for text in file.content.warnings if file.content is not None else ():
        fix = "ask the coordinator for a bundle with a newer authority, and join again"
        yield warning(f"{file.path.name}: {text}", fix=fix)
