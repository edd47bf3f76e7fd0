"""The certificate that the server shows: whose it is, for which names, until when, and who opened TLS."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec

from fedtune.keys.certificates import (
    WARN_DAYS,
    certificate_hash,
    days_left,
    names_of,
    validity_flaws,
)
from fedtune.keys.private import UNREADABLE
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.fields import printable
from fedtune.site.checkup.route import Address, Way
from fedtune.site.findings import Finding, failed, ok, warning

__all__ = ["judged"]

_COMMON_NAME = x509.oid.NameOID.COMMON_NAME
_REJOIN = "join again with a new bundle of the coordinator: fedtune client join"
_RENEW = "the coordinator makes another: fedtune keys server --renew; there is nothing to do at this site"


def judged(
    way: Way, shown: x509.Certificate | None, authority: x509.Certificate, now: datetime
) -> Iterator[Finding]:
    """Everything that is wrong with what the server shows, or one finding that says what it is.

    Args:
        way: A call that came at least as far as TLS.
        shown: What was shown there, read without belief; None if nothing was.
        authority: Whom this site trusts, from ``ca.pem``.
        now: This moment.
    """
    if shown is None:
        yield _no_tls(way)
        return
    if not issued_by(shown, authority):
        yield _foreign(way, shown, authority)
        return
    flaws = [
        *_dates(shown, "certificate of the server", _RENEW, now),
        *_dates(authority, "certificate of the authority", _REJOIN, now),
        *_names(shown, way.server),
    ]
    if flaws:
        yield from flaws
    elif way.stage == "tls":
        yield failed(
            "FT851",
            f"TLS with {way.server} was not agreed on: {_reason(way)}",
            fix="ask the coordinator which TLS the server speaks; at least TLS 1.2 is needed",
        )
    else:
        yield _good(way, shown, now)


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority signed it."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


def _good(way: Way, shown: x509.Certificate, now: datetime) -> Finding:
    left = days_left(shown, now)
    text = (
        f"{way.tls_version}; {_named(shown.subject)}, issued by {_named(shown.issuer)}, for {_said(shown)}, "
        f"{left} days left"
    )
    return warning(text, fix=_RENEW) if left < WARN_DAYS else ok(text)


def _no_tls(way: Way) -> Finding:
    through = f" through the proxy {way.proxy}" if way.proxy else ""
    return failed(
        "FT851",
        f"what answers at {way.server}{through} shows no certificate that can be read: {_reason(way)}",
        fix="ask the coordinator whether the server speaks TLS on this port, and the network team whether "
        f"something on the way ends connections to {way.server}",
    )


def _foreign(way: Way, shown: x509.Certificate, authority: x509.Certificate) -> Finding:
    """Another issuer: somebody opens TLS on the way, or the coordinator has another authority now."""
    what = (
        f"{way.server} shows a certificate of {_named(shown.subject)}, issued by {_named(shown.issuer)} and "
        f"not by this federation's authority {_named(authority.subject)}"
    )
    if _of_fedtune(shown):
        return failed(
            "FT848",
            f"{what} (fingerprint of what is shown: {fingerprint(certificate_hash(shown))})",
            fix="ask the coordinator over another channel whether it has a new authority: if so, join again "
            "with a new bundle; if not, what answers is not the coordinator's",
        )
    who = f"the proxy {way.proxy}" if way.proxy else "a proxy or firewall on the way"
    return failed(
        "FT847",
        f"{what}: {who} opens TLS to inspect it",
        fix=f"ask the network team to exempt {way.server} from TLS inspection, and do not trust that issuer "
        "here; if the issuer is not theirs, ask the coordinator what its server shows",
    )


def _of_fedtune(certificate: x509.Certificate) -> bool:
    """Whether it looks as `fedtune keys server` makes it: P-384, and nothing but a name in either place."""
    try:
        key = certificate.public_key()
    except UNREADABLE:
        return False
    plain = all(
        [attribute.oid for attribute in name] == [_COMMON_NAME]
        for name in (certificate.subject, certificate.issuer)
    )
    return plain and isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)


def _dates(certificate: x509.Certificate, whose: str, fix: str, now: datetime) -> Iterator[Finding]:
    for flaw in validity_flaws(certificate, now):
        begins = now < certificate.not_valid_before_utc
        yield failed(
            "FT850",
            flaw.replace("the certificate", f"the {whose}", 1),
            fix="set this machine's clock if it is wrong; else ask the coordinator" if begins else fix,
        )


def _names(shown: x509.Certificate, server: Address) -> Iterator[Finding]:
    names = names_of(shown)
    if server.host not in {*names.dns, *map(str, names.ip)}:
        yield failed(
            "FT849",
            f"the server's certificate does not hold for {server.host}, it holds for {_said(shown)}",
            fix="ask the coordinator for a certificate with this name (fedtune keys server), or for a bundle "
            "with a name that the certificate holds for",
        )


def _said(certificate: x509.Certificate) -> str:
    names = names_of(certificate)
    every = [*names.dns, *map(str, names.ip)]
    return ", ".join(printable(name) for name in every[:10]) or "no name"


def _named(name: x509.Name) -> str:
    return printable(name.rfc4514_string()) or "nobody"


def _reason(way: Way) -> str:
    refused = way.cause(ssl.SSLCertVerificationError)
    said = getattr(refused, "verify_message", "")
    return str(said or way.reason())
