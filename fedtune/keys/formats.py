"""What each kind of key material says of itself: its name, fingerprint and end, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from fedtune.keys.bundle import BUNDLE_FORMAT, parse_bundle
from fedtune.keys.certificates import (
    WARN_DAYS,
    authority_flaws,
    certificate_hash,
    common_name,
    days_left,
    is_authority,
    names_of,
    parse_certificate,
    server_flaws,
)
from fedtune.keys.joining import CONNECTION_FORMAT, read_connection
from fedtune.keys.private import ENCRYPTED, UNREADABLE, public_from_line, public_hash
from fedtune.keys.problems import refusal
from fedtune.keys.request import REQUEST_FORMAT, parse_request
from fedtune.secagg.entry import fingerprint, parse_application
from fedtune.secagg.fields import parse_json
from fedtune.secagg.roster import parse_roster

__all__ = ["Content", "content_of"]


@dataclass(frozen=True, kw_only=True)
class Content:
    """What the bytes of a file are.

    Attributes:
        kind: In words.
        name: Of whom or what; empty if it has none.
        fingerprint: As people compare it; None where the file does not tell.
        private: Whether only its owner may read it.
        ends: When a certificate ends.
        details: More, by name.
        warnings: What will be wrong soon.
        flaws: What is wrong with a certificate.
    """

    kind: str
    name: str = ""
    fingerprint: str | None = None
    private: bool = False
    ends: datetime | None = None
    details: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    flaws: tuple[str, ...] = ()


def content_of(path: Path, data: bytes, now: datetime) -> Content:
    """Recognise a file by its content.

    Raises:
        FedtuneError: It is damaged, or FT636: it is nothing that this package writes.
    """
    for start, look in _STARTS.items():
        if data.startswith(start):
            return look(path, data, now)
    raise refusal("FT636", "not key material of a federation", where=str(path))


def _certificate(path: Path, data: bytes, now: datetime) -> Content:
    try:
        certificate = parse_certificate(data)
    except ValueError:
        raise refusal("FT636", "a certificate that is damaged", where=str(path)) from None
    left, authority = days_left(certificate, now), is_authority(certificate)
    flaws = authority_flaws(certificate, now) if authority else server_flaws(certificate, None, now)
    return Content(
        kind="certificate of an authority" if authority else "certificate of a server",
        name=common_name(certificate),
        fingerprint=fingerprint(certificate_hash(certificate)),
        ends=certificate.not_valid_after_utc,
        details={} if authority else _server_details(certificate),
        warnings=(f"it ends in {left} days",) if not flaws and left < WARN_DAYS else (),
        flaws=tuple(flaws),
    )


def _server_details(certificate: x509.Certificate) -> dict[str, Any]:
    names = names_of(certificate)
    return {"dns": list(names.dns), "ip": [str(address) for address in names.ip]}


def _pem_key(path: Path, data: bytes, now: datetime) -> Content:
    return _key_content(path, lambda: load_pem_private_key(data, password=None), "private key")


def _openssh_key(path: Path, data: bytes, now: datetime) -> Content:
    return _key_content(path, lambda: load_ssh_private_key(data, password=None), "node key, private")


def _key_content(path: Path, load: Callable[[], object], kind: str) -> Content:
    try:
        key = load()
    except UNREADABLE:
        raise refusal("FT636", "a private key that is damaged", where=str(path)) from None
    if isinstance(key, Ed25519PrivateKey):
        shown = fingerprint(key.public_key().public_bytes_raw())
        return Content(kind="identity, private", fingerprint=shown, private=True)
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1):
        shown = fingerprint(public_hash(key.public_key()))
        return Content(kind=kind, fingerprint=shown, private=True)
    raise refusal("FT636", "a private key of another kind than fedtune makes", where=str(path))


def _sealed_key(path: Path, data: bytes, now: datetime) -> Content:
    return Content(kind="private key under a passphrase", private=True)


def _node_public(path: Path, data: bytes, now: datetime) -> Content:
    try:
        key = public_from_line(data)
    except ValueError:
        raise refusal("FT636", "a public node key that is damaged", where=str(path)) from None
    name = data.decode(errors="replace").strip().split(" ")[2:]
    return Content(kind="node key, public", name=" ".join(name), fingerprint=fingerprint(public_hash(key)))


def _json(path: Path, data: bytes, now: datetime) -> Content:
    try:
        raw = parse_json(data)
    except ValueError:
        raise refusal("FT636", "a JSON file that is damaged", where=str(path)) from None
    form = raw.get("format") if isinstance(raw, dict) else None
    look = _FORMATS.get(form) if isinstance(form, str) else None
    if look is None:
        raise refusal("FT636", "not key material of a federation", where=str(path))
    return look(path, data)


def _request(path: Path, data: bytes) -> Content:
    request = parse_request(data)
    return Content(
        kind="request of a site",
        name=request.site,
        fingerprint=fingerprint(request.entry.identity),
        details={
            "federation": request.federation,
            "node_key": fingerprint(public_hash(request.node_key)),
            "weight": request.entry.weight,
            "group": request.entry.group,
            "request": fingerprint(request.hash),
        },
    )


def _bundle(path: Path, data: bytes) -> Content:
    bundle = parse_bundle(data)
    return Content(
        kind="bundle for a site",
        name=bundle.site,
        fingerprint=fingerprint(bundle.coordinator),
        details={
            "federation": bundle.federation,
            "server": bundle.server,
            "authority": fingerprint(certificate_hash(bundle.authority)),
            "authority_ends": bundle.authority.not_valid_after_utc.isoformat(),
            "request": fingerprint(bundle.request),
            "issued": bundle.issued_at.isoformat(),
            "roster_version": None if bundle.roster is None else bundle.roster.version,
        },
    )


def _connection(path: Path, data: bytes) -> Content:
    connection = read_connection(path)
    return Content(
        kind="connection of a site",
        name=connection.site,
        fingerprint=fingerprint(connection.coordinator),
        details={
            "federation": connection.federation,
            "server": connection.server,
            "authority": fingerprint(connection.authority),
        },
    )


def _entry(path: Path, data: bytes) -> Content:
    application = parse_application(data)
    entry = application.entry
    details = {"federation": application.federation, "weight": entry.weight, "group": entry.group}
    return Content(
        kind="entry for a roster", name=entry.site, fingerprint=fingerprint(entry.identity), details=details
    )


def _roster(path: Path, data: bytes) -> Content:
    roster = parse_roster(data)
    return Content(
        kind="roster",
        name=roster.federation,
        fingerprint=fingerprint(roster.hash),
        details={"version": roster.version, "sites": len(roster.entries)},
    )


_STARTS: Final[dict[bytes, Callable[[Path, bytes, datetime], Content]]] = {
    b"-----BEGIN CERTIFICATE-----": _certificate,
    b"-----BEGIN PRIVATE KEY-----": _pem_key,
    ENCRYPTED: _sealed_key,
    b"-----BEGIN OPENSSH PRIVATE KEY-----": _openssh_key,
    b"ecdsa-sha2-nistp384 ": _node_public,
    b"{": _json,
}
_FORMATS: Final[dict[str, Callable[[Path, bytes], Content]]] = {
    REQUEST_FORMAT: _request,
    BUNDLE_FORMAT: _bundle,
    CONNECTION_FORMAT: _connection,
    "fedtune-roster-entry/1": _entry,
    "fedtune-roster/1": _roster,
}
