"""A coordinator's folder, made and grown: the authority, the server's certificate, settings, enrolled
sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.settings import load_settings, written
from fedtune.keys.authority import Authority, make_authority
from fedtune.keys.enrolment import Enrolled, enrol
from fedtune.keys.names import address_flaws, days_flaws, dns_flaws, ip_flaws
from fedtune.keys.problems import Gathered
from fedtune.keys.removal import Removed, remove_site
from fedtune.keys.request import Request, read_request
from fedtune.keys.server import SERVER_DAYS, ServerOrder, make_server
from fedtune.keys.storage import PRIVATE, existing, write_new
from fedtune.observability.disk import write_atomic
from fedtune.secagg import entry as roster_entry
from fedtune.secagg.files import read_roster
from fedtune.secagg.roster import GENESIS, Roster

__all__ = ["Members", "NewCoordinator", "enrol_sites", "initialise", "remove"]

SERVER: Final = "server"
_LOCAL_NAMES, _LOCAL_ADDRESSES = ("localhost",), ("127.0.0.1",)
"""In every server's certificate: the gate and the coordinator's own commands reach the SuperLink by them."""


@dataclass(frozen=True, kw_only=True)
class NewCoordinator:
    """What was made.

    Attributes:
        authority: With the coordinator's identity.
        address: Where sites connect.
    """

    authority: Authority
    address: str


@dataclass(frozen=True, kw_only=True)
class Members:
    """A version of the roster that is in force now, and the bundles of the sites that are new in it."""

    roster: Roster
    before: Roster | None
    enrolled: tuple[Enrolled, ...]


def initialise(
    path: Path,
    *,
    federation: str,
    dns: Sequence[str],
    ip: Sequence[str],
    port: int,
    superlink_port: int,
    now: datetime,
    passphrase: bytes | None = None,
    days: int = SERVER_DAYS,
) -> NewCoordinator:
    """Make a coordinator's folder; nothing is written over.

    Args:
        path: Where; made if it is not there.
        federation: Its name.
        dns: Host names by which sites reach the server.
        ip: Addresses by which they do.
        port: Where they connect; the gate listens there on every address of this machine.
        superlink_port: Where the SuperLink listens on 127.0.0.1.
        now: When certificates begin.
        passphrase: Encrypts the authority's key.
        days: For how long the server's certificate holds.

    Raises:
        FederationError: All problems: FT634 for files that are there already, FT635 for names and addresses.
        RunError: FT705 or FT707.
    """
    folder, found = CoordinatorFolder(path), Gathered()
    reached = next(iter([*dns, *ip]), "")
    address = f"[{reached}]:{port}" if ":" in reached else f"{reached}:{port}"
    found.add("FT635", roster_entry.name_flaws(federation, "federation"), where="--federation")
    if reached:
        found.add("FT635", address_flaws(address), where="--dns, --ip, --port")
    else:
        found.add("FT635", ["a server has at least one host name or address"], where="--dns, --ip")
    # Before anything is made: a folder with half of it could not be made again.
    found.add("FT635", [flaw for text in dns for flaw in dns_flaws(text)], where="--dns")
    found.add("FT635", [flaw for text in ip for flaw in ip_flaws(text)], where="--ip")
    found.add("FT635", days_flaws(days), where="--days")
    found.add("FT635", _port_flaws(port, superlink_port), where="--superlink-port")
    found.problems += existing([folder.settings, folder.key, folder.certificate])
    found.refuse()
    authority = make_authority(path, name=f"{federation} authority"[:64], now=now, passphrase=passphrase)
    order = ServerOrder(
        name=SERVER, dns=(*dns, *_LOCAL_NAMES), ip=(*ip, *_LOCAL_ADDRESSES), days=days, out=folder.tls
    )
    make_server(path, order, lambda: passphrase or b"", now)
    listen = f"[::]:{port}" if any(":" in each for each in ip) else f"0.0.0.0:{port}"
    text = written(federation=federation, address=address, listen=listen, superlink_port=superlink_port)
    write_new({folder.settings: (text.encode(), PRIVATE)})
    return NewCoordinator(authority=authority, address=address)


def enrol_sites(folder: CoordinatorFolder, requests: Sequence[Path], *, now: datetime) -> Members:
    """Answer requests: the next version of the roster, a bundle for each site, and its node key registered.

    Raises:
        FedtuneError: Everything that is wrong with any request or file; nothing was written but a version of
            the roster that is not in force.
    """
    settings = load_settings(folder.settings)
    before = read_roster(folder.roster) if folder.roster.exists() else None
    asked, found = list[Request](), Gathered()
    for path in requests:
        with found.part():
            asked.append(read_request(path))
    found.refuse()
    roster = _with(before, asked, settings.federation)
    version = folder.roster_version(roster.version)
    if roster is not before:
        write_atomic(version, roster.to_json().encode(), kept="the version in force", again="enrol again")
    enrolled = enrol(
        folder.path,
        requests,
        federation=settings.federation,
        server=settings.address,
        out=folder.bundles,
        now=now,
        roster=version,
    )
    write_atomic(folder.roster, roster.to_json().encode(), kept="the version before", again="enrol again")
    return Members(roster=roster, before=before, enrolled=tuple(enrolled))


def remove(folder: CoordinatorFolder, site: str) -> Removed:
    """Take a site out of the nodes and out of the roster in force.

    Raises:
        FedtuneError: As `fedtune.keys.removal.remove_site`.
    """
    before = read_roster(folder.roster)
    out = folder.roster_version(before.version + 1)
    out.unlink(missing_ok=True)  # of a command that was cut short: it was never in force
    removed = remove_site(site, folder=folder.path, roster=folder.roster, out=out)
    if removed.roster is not None:
        write_atomic(folder.roster, removed.roster.to_json().encode(), kept="the version before")
    return removed


def _port_flaws(port: int, superlink_port: int) -> list[str]:
    if not 1 <= superlink_port < 2**16:
        return [f"{superlink_port} is no port"]
    return ["the gate and the SuperLink cannot listen on one port"] if port == superlink_port else []


def _with(before: Roster | None, asked: Sequence[Request], federation: str) -> Roster:
    """The version in force with the entries of requests that are not in it yet."""
    known = () if before is None else before.entries
    entries = (*known, *(request.entry for request in asked if request.entry not in known))
    if before is None:
        return Roster(federation=federation, version=1, previous=GENESIS, entries=entries)
    return before if entries == known else before.following(entries)
