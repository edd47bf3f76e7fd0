"""Private keys of the elliptic curve P-384 as files, and the passphrase of the authority's."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedtune.errors import FederationError
from fedtune.keys.problems import refusal
from fedtune.keys.storage import read_bounded

__all__ = [
    "ENCRYPTED",
    "MIN_PASSPHRASE",
    "UNREADABLE",
    "long_enough",
    "new_key",
    "node_public_line",
    "openssh",
    "pem",
    "point",
    "public_der",
    "public_from_line",
    "public_from_point",
    "public_hash",
    "read_node_key",
    "read_passphrase",
    "read_pem_key",
    "read_sealed_key",
    "sealed_pem",
]

MIN_PASSPHRASE: Final = 12
ENCRYPTED: Final = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, NotImplementedError)
"""What `cryptography` raises for a key that is damaged or of a kind that it does not read."""

_MOST: Final = 64 * 2**10
_POINT_BYTES: Final = 97


def new_key() -> ec.EllipticCurvePrivateKey:
    """A new key on P-384."""
    return ec.generate_private_key(ec.SECP384R1())


def pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as Flower's SuperLink reads it: PKCS#8."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as Flower's SuperNode reads it."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def sealed_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> bytes:
    """The key encrypted: PKCS#8 with AES-256, under scrypt of the passphrase."""
    sealing = BestAvailableEncryption(_stretched(passphrase, key.public_key()))
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, sealing)


def _stretched(passphrase: bytes, public: ec.EllipticCurvePublicKey) -> bytes:
    """`cryptography` writes PKCS#8 with 2,048 rounds of PBKDF2: too few for a passphrase of a person."""
    salt = hashlib.sha256(public_der(public)).digest()
    return Scrypt(salt=salt, length=32, n=2**17, r=8, p=1).derive(passphrase).hex().encode()


def public_der(public: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as X.509 writes it, in DER."""
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def public_hash(public: ec.EllipticCurvePublicKey) -> bytes:
    """SHA-256 of the public key, of which `fedtune.secagg.entry.fingerprint` shows the beginning."""
    return hashlib.sha256(public_der(public)).digest()


def node_public_line(public: ec.EllipticCurvePublicKey, name: str) -> bytes:
    """The public key in the form that ``flwr supernode register`` reads, with a name as its comment."""
    return public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b" " + name.encode() + b"\n"


def public_from_line(line: bytes) -> ec.EllipticCurvePublicKey:
    """The key of such a line.

    Raises:
        ValueError: It is no public key on P-384.
    """
    try:
        key = load_ssh_public_key(line)
    except (UnsupportedAlgorithm, NotImplementedError) as error:
        raise ValueError(str(error)) from None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1):
        return key
    raise ValueError("a key on the curve P-384 is needed")


def point(public: ec.EllipticCurvePublicKey) -> bytes:
    """The public key as a point, X9.62 uncompressed: 97 bytes."""
    return public.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def public_from_point(raw: bytes) -> ec.EllipticCurvePublicKey:
    """The key of such a point.

    Raises:
        ValueError: It is no point of the curve in this form.
    """
    if len(raw) != _POINT_BYTES:
        raise ValueError(f"a node key is a point of {_POINT_BYTES} bytes, got {len(raw)}")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), raw)


def read_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A site's node key.

    Raises:
        FederationError: FT630, it cannot be read, is another kind of key, or others may use it.
    """
    data = read_bounded(path, "FT630", "the node key", private=True, most=_MOST)
    return _private(path, lambda: load_ssh_private_key(data, password=None))


def read_pem_key(path: Path, what: str) -> ec.EllipticCurvePrivateKey:
    """A key in PKCS#8 that is not encrypted.

    Raises:
        FederationError: FT630, it cannot be read, is another kind of key, or others may use it.
    """
    data = read_bounded(path, "FT630", what, private=True, most=_MOST)
    return _private(path, lambda: load_pem_private_key(data, password=None))


def read_sealed_key(
    path: Path, what: str, public: ec.EllipticCurvePublicKey, ask: Callable[[], bytes]
) -> ec.EllipticCurvePrivateKey:
    """A key in PKCS#8, encrypted or not.

    Args:
        path: The file.
        what: What it is, for a message.
        public: The public key that belongs to it.
        ask: Gives the passphrase; called only where one is needed.

    Raises:
        FederationError: FT630, as `read_pem_key`, or the passphrase or the public key is another one.
    """
    data = read_bounded(path, "FT630", what, private=True, most=_MOST)
    password = _stretched(ask(), public) if ENCRYPTED in data else None
    try:
        key = _private(path, lambda: load_pem_private_key(data, password=password))
    except FederationError:
        if password is None:
            raise
        said = "it does not open with this passphrase, or is damaged"
        raise refusal(
            "FT630", f"{what}: {said}", where=str(path), fix="repeat it and type carefully"
        ) from None
    if key.public_key() != public:
        said = "it is not the key of the certificate beside it"
        raise refusal("FT630", f"{what}: {said}", where=str(path), fix="restore both from one backup")
    return key


def _private(path: Path, load: Callable[[], object]) -> ec.EllipticCurvePrivateKey:
    try:
        key = load()
    except UNREADABLE as error:
        said = " ".join(str(error).split())
        raise refusal("FT630", f"not a private key that can be read: {said:.200}", where=str(path)) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        kind = type(key).__name__
        raise refusal("FT630", f"a key on the curve P-384 is needed, got {kind}", where=str(path))
    return key


def read_passphrase(path: Path) -> bytes:
    """The first line of a file that only its owner can read.

    Raises:
        FederationError: FT630, it cannot be read, is too short, or others may use it.
    """
    data = read_bounded(path, "FT630", "the file of the passphrase", private=True, most=_MOST)
    lines = data.splitlines()
    return long_enough(lines[0] if lines else b"", where=str(path))


def long_enough(passphrase: bytes, *, where: str) -> bytes:
    """The passphrase itself.

    Raises:
        FederationError: FT630, it is too short.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        what = f"a passphrase has at least {MIN_PASSPHRASE} bytes, this one has {len(passphrase)}"
        raise refusal("FT630", what, where=where, fix="choose a longer one, such as six random words")
    return passphrase
