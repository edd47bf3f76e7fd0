"""The site's part: to believe a bundle that answers its request and whose signer its operator confirmed."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from fedtune.keys import strict
from fedtune.keys.authority import AUTHORITY_CERTIFICATE
from fedtune.keys.bundle import Bundle, read_bundle
from fedtune.keys.certificates import authority_flaws, certificate_hash, to_pem
from fedtune.keys.names import address_flaws, name_flaws
from fedtune.keys.node import CONNECTION, IDENTITY_KEY, NODE_KEY, request_path
from fedtune.keys.private import point, read_node_key
from fedtune.keys.problems import Gathered, refusal
from fedtune.keys.request import Request, read_request
from fedtune.keys.storage import read_bounded
from fedtune.observability.disk import write_atomic
from fedtune.secagg.entry import fingerprint, same_fingerprint
from fedtune.secagg.fields import hex_bytes, integer, string
from fedtune.secagg.identity import IDENTITY_BYTES, Identity

__all__ = ["CONNECTION_FORMAT", "Answer", "Connection", "accept", "check", "read_connection"]

CONNECTION_FORMAT: Final = "fedtune-connection/1"
_KEYS: Final = (
    "format",
    "federation",
    "site",
    "server",
    "coordinator",
    "authority",
    "request",
    "issued",
)
_HASH_BYTES: Final = 32
_MOST: Final = 64 * 2**10


@dataclass(frozen=True, kw_only=True)
class Connection:
    """Whom a site trusts and where it connects, as its operator accepted it.

    Attributes:
        federation: What the site belongs to.
        site: Its name.
        server: Where it connects, ``host:port``.
        coordinator: Identity of the coordinator that the operator confirmed.
        authority: SHA-256 of the certificate in ``ca.pem``.
        request: Hash of the request that was answered.
        issued: When the bundle was issued, in seconds since 1970.
    """

    federation: str
    site: str
    server: str
    coordinator: bytes
    authority: bytes
    request: bytes
    issued: int

    def to_json(self) -> bytes:
        fields: dict[str, Any] = {"format": CONNECTION_FORMAT}
        for key, value in dataclasses.asdict(self).items():
            fields[key] = value.hex() if isinstance(value, bytes) else value
        return strict.written(fields)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A bundle in which nothing is wrong but that nobody has confirmed yet; see `check`."""

    folder: Path
    path: Path
    bundle: Bundle
    before: Connection | None

    @property
    def roster_path(self) -> Path | None:
        """Where the roster that came along is written, for the operator to look at."""
        version = self.bundle.roster
        return None if version is None else self.folder / f"roster-{version.version}.json"


def check(folder: Path, path: Path, now: datetime) -> Answer:
    """Look at a bundle; nothing is written.

    Args:
        folder: The site's, in which `fedtune.keys.node.make_node` made its keys and request.
        path: The bundle.
        now: This moment.

    Raises:
        FederationError: All problems: FT633 of the bundle, FT630, FT632, FT636 and FT928 of the site's own
            files.
    """
    bundle, found = read_bundle(path), Gathered()
    fix = "ask the coordinator for a bundle with an authority that holds"
    found.add("FT633", authority_flaws(bundle.authority, now), where=f"{path}, authority", fix=fix)
    with found.part():
        _check_request(folder, path, bundle)
    before: Connection | None = None
    with found.part():
        before = _connection_before(folder, path, bundle)
    found.refuse()
    return Answer(folder=folder, path=path, bundle=bundle, before=before)


def _check_request(folder: Path, path: Path, bundle: Bundle) -> None:
    asked, found = request_path(folder, bundle.site), Gathered()
    if not os.path.lexists(asked):
        said = f"it is for {bundle.site}, and there is no request of {bundle.site} in {folder}"
        raise refusal("FT633", said, where=str(path))
    request = read_request(asked)
    if bundle.request != request.hash:
        found.add("FT633", ["it answers another request than the one in this folder"], where=str(path))
    elif bundle.federation != request.federation:
        said = f"it is for {bundle.federation!r}, this site asked for {request.federation!r}"
        found.add("FT633", [said], where=str(path))
    if bundle.roster is not None and request.entry not in bundle.roster.entries:
        said = f"its roster, version {bundle.roster.version}, does not have this site with its identity"
        found.add("FT633", [said], where=str(path))
    _check_keys(found, folder, request)
    found.refuse()


def _check_keys(found: Gathered, folder: Path, request: Request) -> None:
    fix = "restore the folder's files from one backup"
    node, identity = folder / NODE_KEY, folder / IDENTITY_KEY
    with found.part():
        if point(read_node_key(node).public_key()) != request.node:
            raise refusal("FT630", "it is not the node key of this site's request", where=str(node), fix=fix)
    with found.part():
        if Identity.load(identity).public != request.entry.identity:
            raise refusal(
                "FT630", "it is not the identity of this site's request", where=str(identity), fix=fix
            )


def _connection_before(folder: Path, path: Path, bundle: Bundle) -> Connection | None:
    connection = folder / CONNECTION
    if not os.path.lexists(connection):
        return None
    before = read_connection(connection)
    if before.coordinator != bundle.coordinator:
        raise refusal(
            "FT633",
            f"it is signed by {fingerprint(bundle.coordinator)}, this site has accepted the coordinator "
            f"{fingerprint(before.coordinator)}",
            where=str(path),
            fix=f"if the coordinator itself tells you that its identity changed, move {connection} away",
        )
    if bundle.issued < before.issued:
        raise refusal("FT633", "it is older than the bundle that this site accepted", where=str(path))
    return before


def accept(answer: Answer, confirmed: str) -> Connection:
    """Write the authority's certificate and the connection beside the site's keys.

    The connection is written last: a site whose joining was cut short joins again.

    Args:
        answer: A bundle from `check`.
        confirmed: The coordinator's fingerprint as the operator heard it over another channel.

    Raises:
        FederationError: FT633, the fingerprint is another one; nothing was written.
        RunError: FT705 or FT707, a file cannot be written.
    """
    bundle, expected = answer.bundle, fingerprint(answer.bundle.coordinator)
    if not same_fingerprint(confirmed, expected):
        raise refusal(
            "FT633",
            f"its coordinator has the fingerprint {expected}, the operator confirmed {confirmed!r:.80}",
            where=str(answer.path),
        )
    connection = Connection(
        federation=bundle.federation,
        site=bundle.site,
        server=bundle.server,
        coordinator=bundle.coordinator,
        authority=certificate_hash(bundle.authority),
        request=bundle.request,
        issued=bundle.issued,
    )
    if answer.roster_path is not None and bundle.roster is not None:
        _write(answer.roster_path, bundle.roster.to_json().encode())
    _write(answer.folder / AUTHORITY_CERTIFICATE, to_pem(bundle.authority))
    _write(answer.folder / CONNECTION, connection.to_json())
    return connection


def _write(path: Path, data: bytes) -> None:
    write_atomic(path, data, kept="what the site had accepted before", again="join again")


def read_connection(path: Path) -> Connection:
    """What a site accepted.

    Raises:
        FederationError: FT636, the file cannot be read or is damaged.
    """
    data = read_bounded(path, "FT636", "the connection", most=_MOST)
    fix = f"move {path} away and join again with the coordinator's bundle"
    try:
        raw = strict.read(data, *_KEYS, form=CONNECTION_FORMAT)
        connection = Connection(
            federation=string(raw["federation"]),
            site=string(raw["site"]),
            server=string(raw["server"]),
            coordinator=hex_bytes(raw["coordinator"], IDENTITY_BYTES),
            authority=hex_bytes(raw["authority"], _HASH_BYTES),
            request=hex_bytes(raw["request"], _HASH_BYTES),
            issued=integer(raw["issued"]),
        )
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise refusal("FT636", f"not a connection: {said:.200}", where=str(path), fix=fix) from None
    found = Gathered()
    flaws = name_flaws(connection.site, "site") + address_flaws(connection.server)
    found.add("FT636", flaws, where=str(path), fix=fix)
    found.refuse()
    return connection
