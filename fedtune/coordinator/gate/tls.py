"""The gate's two ends of TLS: the certificate that sites see, and how it checks the SuperLink's."""

from __future__ import annotations

import ipaddress
import ssl
from datetime import datetime

from cryptography import x509

from fedtune.coordinator.gate.settings import GateSettings, parse_address
from fedtune.keys.authority import read_certificate
from fedtune.keys.certificates import authority_flaws, names_of, server_flaws
from fedtune.keys.private import read_pem_key
from fedtune.keys.problems import Gathered, refusal

__all__ = ["towards_sites", "towards_superlink"]


def towards_sites(settings: GateSettings, now: datetime) -> ssl.SSLContext:
    """TLS 1.2 or newer with the coordinator's certificate, after everything about it was checked.

    The certificate has to hold for the SuperLink's address as well, because it serves there too.

    Raises:
        FederationError: All problems: FT630 for the key, FT631 for the certificates.
    """
    found = Gathered()
    key = certificate = authority = None
    with found.part():
        authority = read_certificate(settings.authority, "the authority's certificate")
        found.add("FT631", authority_flaws(authority, now), where=str(settings.authority))
    with found.part():
        key = read_pem_key(settings.key, "the server's key")
    with found.part():
        certificate = read_certificate(settings.certificate, "the server's certificate")
        found.add("FT631", server_flaws(certificate, authority, now), where=str(settings.certificate))
        found.add("FT631", _missing_name(settings, certificate), where=str(settings.certificate))
        if key is not None and certificate.public_key() != key.public_key():
            said = "the certificate is not that of the server's key"
            found.add("FT631", [said], where=str(settings.certificate))
    found.refuse()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as error:
        raise refusal("FT631", f"TLS refuses it: {error!s:.200}", where=str(settings.certificate)) from None
    return context


def towards_superlink(settings: GateSettings) -> ssl.SSLContext:
    """TLS 1.2 or newer that trusts the coordinator's own authority alone, and checks the address.

    Raises:
        FederationError: FT631, the authority's certificate cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(settings.authority)
    except (OSError, ssl.SSLError) as error:
        raise refusal("FT631", f"TLS refuses it: {error!s:.200}", where=str(settings.authority)) from None
    return context


def _missing_name(settings: GateSettings, certificate: x509.Certificate) -> list[str]:
    host = parse_address(settings.superlink).host
    if ipaddress.ip_address(host) in names_of(certificate).ip:
        return []
    return [
        f"the certificate does not hold for {host}, where the SuperLink is (fedtune keys server --ip {host})"
    ]
