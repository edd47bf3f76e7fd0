"""The coordinator's part: requests are checked, answered with bundles, and their node keys registered."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from fedtune.errors import Problem
from fedtune.keys.authority import COORDINATOR_KEY, NODES, read_authority
from fedtune.keys.bundle import Bundle
from fedtune.keys.names import address_flaws
from fedtune.keys.private import node_public_line, point, public_from_line, public_hash
from fedtune.keys.problems import Gathered, problem, refusal
from fedtune.keys.request import Request, read_request
from fedtune.keys.storage import PUBLIC, existing, read_bounded, write_new
from fedtune.secagg import entry as roster_entry
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.files import read_roster
from fedtune.secagg.identity import Identity
from fedtune.secagg.roster import Roster

__all__ = ["BUNDLE_SUFFIX", "Enrolled", "enrol", "node_path", "read_node_public", "removed_path"]

BUNDLE_SUFFIX: Final = ".bundle.json"
_REMOVED: Final = "removed"
_MOST: Final = 64 * 2**10


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """One site's request and the bundle that answers it."""

    request: Request
    bundle: Bundle
    path: Path
    node: Path


def node_path(folder: Path, site: str) -> Path:
    """Where the coordinator keeps the node key of an enrolled site."""
    return folder / NODES / f"{site}.pub"


def removed_path(folder: Path, node: bytes) -> Path:
    """Where a removed node key is remembered, so that it is not enrolled again."""
    return folder / NODES / _REMOVED / f"{fingerprint(node)}.pub"


def read_node_public(path: Path) -> bytes:
    """A registered node key, as the point of a request.

    Raises:
        FederationError: FT636, the file cannot be read or is none.
    """
    data = read_bounded(path, "FT636", "the node key", most=_MOST)
    try:
        return point(public_from_line(data))
    except ValueError:
        raise refusal("FT636", "not a public node key on P-384", where=str(path)) from None


def enrol(
    folder: Path,
    requests: Sequence[Path],
    *,
    federation: str,
    server: str,
    out: Path,
    now: datetime,
    roster: Path | None = None,
) -> list[Enrolled]:
    """Answer each request with a bundle ``out/NAME.bundle.json`` and register its node key.

    Args:
        folder: The coordinator's. The authority's private key is not needed.
        requests: Files that sites sent.
        federation: What every request must be for.
        server: Where sites connect, ``host:port``.
        out: Where the bundles are written; made if it is not there.
        now: When the bundles are issued.
        roster: A version to send along, in which every one of these sites is.

    Raises:
        FederationError: Everything that is wrong with any file or argument; nothing was written.
        RunError: FT705 or FT707; no bundle is left.
    """
    found = Gathered()
    authority: x509.Certificate | None = None
    coordinator: Identity | None = None
    version: Roster | None = None
    found.add("FT635", roster_entry.name_flaws(federation, "federation"), where="--federation")
    found.add("FT635", address_flaws(server), where="--server")
    with found.part():
        authority = read_authority(folder, now)
    with found.part():
        coordinator = Identity.load(folder / COORDINATOR_KEY)
    if roster is not None:
        with found.part():
            version = _roster(roster, federation)
    asked = _read_all(found, requests)
    for path, request in asked.items():
        found.problems += _request_problems(path, request, folder, federation, version)
        found.problems += existing([_bundle_path(out, request)])
    found.problems += _repeated(asked)
    found.refuse()
    if authority is None or coordinator is None:
        raise TypeError("a file that was not read is a problem")
    answers = []
    for request in asked.values():
        bundle = Bundle(
            federation=federation,
            site=request.site,
            server=server,
            authority=authority,
            coordinator=coordinator.public,
            request=request.hash,
            issued=int(now.timestamp()),
            roster=version,
        ).signed(coordinator)
        answers.append(
            Enrolled(
                request=request,
                bundle=bundle,
                path=_bundle_path(out, request),
                node=node_path(folder, request.site),
            )
        )
    files = {each.path: (each.bundle.to_json(), PUBLIC) for each in answers}
    for each in answers:
        if not os.path.lexists(each.node):
            files[each.node] = (node_public_line(each.request.node_key, each.request.site), PUBLIC)
    write_new(files)
    return answers


def _bundle_path(out: Path, request: Request) -> Path:
    return out / f"{request.site}{BUNDLE_SUFFIX}"


def _roster(path: Path, federation: str) -> Roster:
    version = read_roster(path)
    if version.federation != federation:
        raise refusal(
            "FT635",
            f"this is a roster of {version.federation!r}, not of {federation!r}",
            where=str(path),
        )
    return version


def _read_all(found: Gathered, paths: Sequence[Path]) -> dict[Path, Request]:
    asked = {}
    for path in paths:
        with found.part():
            asked[path] = read_request(path)
    return asked


def _request_problems(
    path: Path, request: Request, folder: Path, federation: str, version: Roster | None
) -> list[Problem]:
    """What keeps a request that is right in itself from being answered."""
    found, node = Gathered(), public_hash(request.node_key)
    if request.federation != federation:
        said = f"{request.site} asks for {request.federation!r}, not for {federation!r}"
        found.add("FT632", [said], where=str(path))
    if version is not None and request.entry not in version.entries:
        said = f"version {version.version} of the roster does not have {request.site} with this identity"
        fix = "make a version with this request in it: fedtune keys roster make"
        found.add("FT632", [said], where=str(path), fix=fix)
    if os.path.lexists(removed_path(folder, node)):
        said = f"the node key {fingerprint(node)} of {request.site} was removed and is not enrolled again"
        found.add("FT632", [said], where=str(path), fix="let the site make new keys: fedtune keys client")
    registered = node_path(folder, request.site)
    if os.path.lexists(registered):
        with found.part():
            if read_node_public(registered) != request.node:
                said = f"{request.site} is enrolled with another node key"
                fix = f"remove it first if that is right: fedtune keys revoke {request.site}"
                found.add("FT632", [said], where=str(path), fix=fix)
    return found.problems


def _repeated(asked: dict[Path, Request]) -> list[Problem]:
    """Two requests of one name, one identity or one node key."""
    parts: dict[Path, dict[str, str | bytes]] = {
        path: {"name": request.site, "identity": request.entry.identity, "node key": request.node}
        for path, request in asked.items()
    }
    times = Counter(part for own in parts.values() for part in own.items())
    return [
        problem(
            "FT632", f"another request has the same {part[0]}", where=str(path), fix="leave one of them out"
        )
        for path, own in parts.items()
        for part in own.items()
        if times[part] > 1
    ]
