"""The TLS key and certificate of a coordinator's server, and a new certificate before the old one ends."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedtune.keys.authority import read_authority, read_authority_key, read_certificate
from fedtune.keys.certificates import ServerNames, is_authority, names_of, server_certificate, to_pem
from fedtune.keys.names import days_flaws, dns_flaws, ip_flaws, name_flaws, normal_dns
from fedtune.keys.private import new_key, pem, read_pem_key
from fedtune.keys.problems import Gathered, refusal
from fedtune.keys.storage import PRIVATE, PUBLIC, existing, write_new
from fedtune.observability.disk import write_atomic

__all__ = ["SERVER_DAYS", "Server", "ServerOrder", "make_server", "renew_server"]

SERVER_DAYS: Final = 365


@dataclass(frozen=True, kw_only=True)
class ServerOrder:
    """What a server's certificate is to be.

    Attributes:
        name: The server's, and the beginning of its files' names.
        dns: Host names by which sites reach it.
        ip: Addresses by which sites reach it.
        days: For how long it holds, not longer than the authority's.
        out: The folder of ``NAME.key`` and ``NAME.pem``.
    """

    name: str
    dns: Sequence[str] = ()
    ip: Sequence[str] = ()
    days: int = SERVER_DAYS
    out: Path

    @property
    def key(self) -> Path:
        return self.out / f"{self.name}.key"

    @property
    def certificate(self) -> Path:
        return self.out / f"{self.name}.pem"

    @property
    def names(self) -> ServerNames:
        return ServerNames(
            dns=tuple(dict.fromkeys(map(normal_dns, self.dns))),
            ip=tuple(dict.fromkeys(map(ipaddress.ip_address, self.ip))),
        )


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server's files, and the certificate that was made."""

    key: Path
    certificate_path: Path
    certificate: x509.Certificate

    @property
    def names(self) -> ServerNames:
        return names_of(self.certificate)


def make_server(folder: Path, order: ServerOrder, ask: Callable[[], bytes], now: datetime) -> Server:
    """Make a server's key and certificate; nothing is written over.

    Args:
        folder: The coordinator's, with the authority.
        order: What is asked for.
        ask: Gives the passphrase of the authority's key; called only if it is under one.
        now: The moment at which the certificate begins.

    Raises:
        FederationError: All problems: FT630 and FT631 of the authority, FT634 for files that are there
            already, FT635 for names, addresses and the validity.
        RunError: FT705 or FT707, the files cannot be written.
    """
    found = Gathered()
    _check(found, order)
    if not (order.dns or order.ip):
        found.add("FT635", ["a server has at least one host name or address"], where="--dns, --ip")
    found.problems += existing([order.key, order.certificate])
    authority = _authority(found, folder, order.days, now)
    authority_key = read_authority_key(folder, authority, ask)
    key = new_key()
    certificate = server_certificate(
        key.public_key(),
        order.name,
        order.names,
        authority=authority,
        authority_key=authority_key,
        days=order.days,
        now=now,
    )
    write_new({order.key: (pem(key), PRIVATE), order.certificate: (to_pem(certificate), PUBLIC)})
    return Server(key=order.key, certificate_path=order.certificate, certificate=certificate)


def renew_server(folder: Path, order: ServerOrder, ask: Callable[[], bytes], now: datetime) -> Server:
    """Make a new certificate for a server's key; the old one is there until the new one replaces it.

    The key stays: two files cannot be replaced at one instant, and a server that starts between the two would
    find a key and a certificate that do not fit. A new key gets a new name. Without names in the order, those
    of the old certificate are kept.

    Raises:
        FederationError: As `make_server`; also FT630 and FT631 of the server's files.
        RunError: FT705 or FT707; the old certificate is as it was.
    """
    found = Gathered()
    _check(found, order)
    key: ec.EllipticCurvePrivateKey | None = None
    old: x509.Certificate | None = None
    with found.part():
        key = read_pem_key(order.key, "the server's key")
    with found.part():
        old = _old_certificate(order.certificate, key)
    authority = _authority(found, folder, order.days, now)
    if key is None or old is None:
        raise TypeError("a file that was not read is a problem")
    certificate = server_certificate(
        key.public_key(),
        order.name,
        order.names or names_of(old),
        authority=authority,
        authority_key=read_authority_key(folder, authority, ask),
        days=order.days,
        now=now,
    )
    write_atomic(
        order.certificate, to_pem(certificate), kept="the certificate before", again="renew it again"
    )
    return Server(key=order.key, certificate_path=order.certificate, certificate=certificate)


def _old_certificate(path: Path, key: ec.EllipticCurvePrivateKey | None) -> x509.Certificate:
    old = read_certificate(path, "the server's certificate")
    if is_authority(old):
        raise refusal("FT631", "this is the certificate of an authority, not of a server", where=str(path))
    if key is not None and old.public_key() != key.public_key():
        raise refusal("FT631", "the certificate is not that of the key beside it", where=str(path))
    return old


def _check(found: Gathered, order: ServerOrder) -> None:
    found.add("FT635", name_flaws(order.name, "server"), where="NAME")
    found.add("FT635", [flaw for text in order.dns for flaw in dns_flaws(text)], where="--dns")
    found.add("FT635", [flaw for text in order.ip for flaw in ip_flaws(text)], where="--ip")
    found.add("FT635", days_flaws(order.days), where="--days")


def _authority(found: Gathered, folder: Path, days: int, now: datetime) -> x509.Certificate:
    """The authority, after everything that was found wrong so far."""
    authority: x509.Certificate | None = None
    with found.part():
        authority = read_authority(folder, now)
    if authority is not None and not days_flaws(days):
        ends = authority.not_valid_after_utc
        if now + timedelta(days=days) > ends:
            said = f"{days} days are longer than the authority's certificate holds, to {ends:%Y-%m-%d}"
            found.add("FT635", [said], where="--days")
    found.refuse()
    if authority is None:
        raise TypeError("an authority that was not read is a problem")
    return authority
