"""The coordinator's folder: the authority's certificate and key, the coordinator's identity, the nodes.

======================  ====  =================================================================
``ca.pem``              0644  the authority's certificate, which every site gets
``ca.key``              0600  its private key, under a passphrase if one was given
``coordinator.key``     0600  the coordinator's identity, which signs bundles
``nodes/NAME.pub``      0644  the node key of each site that is enrolled, as Flower registers it
======================  ====  =================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fedtune.keys.certificates import (
    authority_certificate,
    authority_flaws,
    parse_certificate,
    to_pem,
)
from fedtune.keys.names import days_flaws
from fedtune.keys.private import new_key, pem, read_sealed_key, sealed_pem
from fedtune.keys.problems import Gathered, problem, refusal
from fedtune.keys.storage import PRIVATE, PUBLIC, existing, read_bounded, write_new
from fedtune.secagg.fields import printable
from fedtune.secagg.identity import Identity

__all__ = [
    "AUTHORITY_CERTIFICATE",
    "AUTHORITY_DAYS",
    "AUTHORITY_KEY",
    "COORDINATOR_KEY",
    "NODES",
    "Authority",
    "make_authority",
    "read_authority",
    "read_authority_key",
    "read_certificate",
]

AUTHORITY_CERTIFICATE: Final = "ca.pem"
AUTHORITY_KEY: Final = "ca.key"
COORDINATOR_KEY: Final = "coordinator.key"
NODES: Final = "nodes"
AUTHORITY_DAYS: Final = 3_650
"""Ten years: a new authority means a new bundle for every site."""

_MOST: Final = 64 * 2**10
_LONGEST_COMMON_NAME: Final = 64


@dataclass(frozen=True, kw_only=True)
class Authority:
    """What the coordinator's folder says of itself."""

    folder: Path
    certificate: x509.Certificate
    coordinator: bytes


def make_authority(
    folder: Path,
    *,
    name: str,
    now: datetime,
    days: int = AUTHORITY_DAYS,
    passphrase: bytes | None = None,
) -> Authority:
    """Make an authority and a coordinator's identity; nothing is written over.

    Args:
        folder: Where they are written; made if it is not there.
        name: The authority's, for people.
        now: The moment at which it begins.
        days: For how long its certificate holds.
        passphrase: Encrypts the authority's key.

    Raises:
        FederationError: FT634 for each file that is there already, FT635 for a name or a validity.
        RunError: FT705 or FT707, the folder cannot be written.
    """
    found = Gathered()
    if not (0 < len(name) <= _LONGEST_COMMON_NAME and name.isprintable()):
        said = f"an authority's name has 1 to {_LONGEST_COMMON_NAME} printable characters"
        found.add("FT635", [f"{said}, got {printable(name)!r}"], where="--name")
    found.add("FT635", days_flaws(days), where="--days")
    paths = [folder / each for each in (AUTHORITY_CERTIFICATE, AUTHORITY_KEY, COORDINATOR_KEY)]
    found.problems += existing(paths)
    found.refuse()
    key, coordinator = new_key(), Identity.generate()
    certificate = authority_certificate(key, name, days=days, now=now)
    written = pem(key) if passphrase is None else sealed_pem(key, passphrase)
    write_new(
        {
            paths[1]: (written, PRIVATE),
            paths[2]: (coordinator.to_pem(), PRIVATE),
            paths[0]: (to_pem(certificate), PUBLIC),
        }
    )
    return Authority(folder=folder, certificate=certificate, coordinator=coordinator.public)


def read_certificate(path: Path, what: str) -> x509.Certificate:
    """A certificate; whether it is good for anything is another question.

    Raises:
        FederationError: FT631, it cannot be read or is none.
    """
    data = read_bounded(path, "FT631", what, most=_MOST)
    try:
        return parse_certificate(data)
    except ValueError:
        raise refusal("FT631", f"{what}: not a certificate in PEM", where=str(path)) from None


def read_authority(folder: Path, now: datetime) -> x509.Certificate:
    """The authority's certificate.

    Raises:
        FederationError: FT631 with everything that is wrong with it.
    """
    path = folder / AUTHORITY_CERTIFICATE
    certificate = read_certificate(path, "the authority's certificate")
    found = Gathered()
    fix = "make an authority in a new folder (fedtune keys ca), and enrol the sites with it"
    found.problems += [
        problem("FT631", flaw, where=str(path), fix=fix) for flaw in authority_flaws(certificate, now)
    ]
    found.refuse()
    return certificate


def read_authority_key(
    folder: Path, certificate: x509.Certificate, ask: Callable[[], bytes]
) -> ec.EllipticCurvePrivateKey:
    """The authority's private key.

    Args:
        folder: The coordinator's.
        certificate: The authority's, from `read_authority`.
        ask: Gives the passphrase; called only if the key is under one.

    Raises:
        FederationError: FT630, the key cannot be used, or does not belong to the certificate.
    """
    public = certificate.public_key()
    if not isinstance(public, ec.EllipticCurvePublicKey):
        raise TypeError("an authority that was read has a key on P-384")
    return read_sealed_key(folder / AUTHORITY_KEY, "the authority's key", public, ask)
