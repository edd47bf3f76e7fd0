"""X.509 certificates of a private authority and of servers, all on P-384, and what is wrong with one.

A certificate is valid from an hour before it was made: a site's clock may be behind.
"""

from __future__ import annotations

import ipaddress
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedtune.keys.names import IPAddress

__all__ = [
    "WARN_DAYS",
    "ServerNames",
    "authority_certificate",
    "authority_flaws",
    "certificate_hash",
    "common_name",
    "days_left",
    "is_authority",
    "names_of",
    "parse_certificate",
    "server_certificate",
    "server_flaws",
    "to_pem",
    "utc_now",
    "validity_flaws",
]

WARN_DAYS: Final = 30
"""A certificate that ends sooner is pointed out."""

_BEFORE: Final = timedelta(hours=1)
_UNREADABLE: Final = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, kw_only=True)
class ServerNames:
    """By what a server is reached: host names and addresses, each once."""

    dns: tuple[str, ...] = ()
    ip: tuple[IPAddress, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.dns or self.ip)


def authority_certificate(
    key: ec.EllipticCurvePrivateKey, name: str, *, days: int, now: datetime
) -> x509.Certificate:
    """A certificate that the authority gives itself; it vouches for servers and for no further authority."""
    subject = _name(name)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        _unsigned(subject, subject, key.public_key(), now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(authority=True), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA384())
    )


def server_certificate(
    public: ec.EllipticCurvePublicKey,
    name: str,
    names: ServerNames,
    *,
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
    now: datetime,
) -> x509.Certificate:
    """A TLS server's certificate, signed by the authority."""
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    alternatives = [*map(x509.DNSName, names.dns), *map(x509.IPAddress, names.ip)]
    return (
        _unsigned(_name(name), authority.subject, public, now=now, days=days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _unsigned(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, *, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def parse_certificate(data: bytes) -> x509.Certificate:
    """The first certificate of a PEM text.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    with warnings.catch_warnings():
        # What `cryptography` still reads with a warning, such as a negative serial number, nobody should use.
        warnings.simplefilter("error")
        try:
            return x509.load_pem_x509_certificate(data)
        except (UnsupportedAlgorithm, x509.InvalidVersion, Warning) as error:
            raise ValueError(str(error)) from None


def to_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def certificate_hash(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the whole certificate."""
    return certificate.fingerprint(hashes.SHA256())


def common_name(certificate: x509.Certificate) -> str:
    """The name that people gave to whom the certificate is for; empty if it has none."""
    try:
        found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError:
        return ""
    return str(found[0].value) if found else ""


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether it may vouch for others."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except _UNREADABLE:
        return False


def names_of(certificate: x509.Certificate) -> ServerNames:
    """The names that a server's certificate holds for; none if they cannot be read."""
    try:
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNREADABLE:
        return ServerNames()
    single = (ipaddress.IPv4Address, ipaddress.IPv6Address)
    addresses = (address for address in held.get_values_for_type(x509.IPAddress))
    return ServerNames(
        dns=tuple(held.get_values_for_type(x509.DNSName)),
        ip=tuple(address for address in addresses if isinstance(address, single)),
    )


def days_left(certificate: x509.Certificate, now: datetime) -> int:
    """Whole days until it ends; negative when it has ended."""
    return (certificate.not_valid_after_utc - now) // timedelta(days=1)


def validity_flaws(certificate: x509.Certificate, now: datetime) -> list[str]:
    """Whether the certificate has ended or has not begun."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > ends:
        return [f"the certificate ended on {ends:%Y-%m-%d}"]
    if now < begins:
        return [f"the certificate begins on {begins:%Y-%m-%d at %H:%M} UTC, this clock says {now:%Y-%m-%d}"]
    return []


def authority_flaws(certificate: x509.Certificate, now: datetime) -> list[str]:
    """Why a certificate cannot be the root that a site trusts; empty if it can."""
    flaws = _key_flaws(certificate)
    if not is_authority(certificate):
        flaws.append("the certificate is not that of an authority")
    try:
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except _UNREADABLE:
        usage = False
    if not usage:
        flaws.append("the certificate's key may not sign certificates")
    if not _signed_by(certificate, certificate):
        flaws.append("the certificate is not signed by itself")
    return flaws + validity_flaws(certificate, now)


def server_flaws(
    certificate: x509.Certificate, authority: x509.Certificate | None, now: datetime
) -> list[str]:
    """Why a server cannot show this certificate; the authority is looked at only if it is given."""
    flaws = _key_flaws(certificate)
    if is_authority(certificate):
        flaws.append("the certificate is that of an authority, not of a server")
    if not names_of(certificate):
        flaws.append("the certificate holds for no host name and no address")
    if authority is not None and not _signed_by(certificate, authority):
        flaws.append(f"the certificate is not signed by the authority {common_name(authority)!r}")
    return flaws + validity_flaws(certificate, now)


def _key_flaws(certificate: x509.Certificate) -> list[str]:
    try:
        key = certificate.public_key()
    except _UNREADABLE:
        key = None
    right = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)
    return [] if right else ["the certificate's key is not on the curve P-384"]


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except _UNREADABLE:
        return False
    return True


def utc_now() -> datetime:
    """This moment, as certificates count it: in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
