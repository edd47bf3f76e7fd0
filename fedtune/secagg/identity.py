"""A site's lasting identity: an Ed25519 key, and signatures that say what they are for.

A signature covers the protocol's name, a purpose, the signer and a SHA-256 of the body, so that none made
for one end verifies for another. (Hashing first keeps a 40 MB masked vector at one SHA-256 pass.)
"""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedtune.secagg.canonical import PROTOCOL, canonical
from fedtune.secagg.problems import refusal

__all__ = ["IDENTITY_BYTES", "SIGNATURE_BYTES", "Identity", "verify"]

IDENTITY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
_MAX_PEM_BYTES: Final = 64 * 2**10


def _signed_bytes(purpose: str, signer: bytes, body: bytes | memoryview) -> bytes:
    return _purpose_prefix(purpose) + canonical(signer, hashlib.sha256(body).digest())


@functools.lru_cache(maxsize=64)
def _purpose_prefix(purpose: str) -> bytes:
    return canonical(PROTOCOL, "signature", purpose)


@functools.lru_cache(maxsize=4096)
def _loaded(signer: bytes) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(signer)


def verify(signer: bytes, purpose: str, body: bytes | memoryview, signature: bytes) -> bool:
    """Whether `signature` (64 bytes) is `signer`'s over this body for this purpose (RFC 8032).

    Virtual clients of one process all check the same signatures, n² of them in a round; the verdict is a
    pure function of its arguments, so each different one is computed once. (A site on its own never asks
    twice.)
    """
    return _verdict(signer, _signed_bytes(purpose, signer, body), signature)


@functools.lru_cache(maxsize=8192)
def _verdict(signer: bytes, message: bytes, signature: bytes) -> bool:
    try:
        _loaded(signer).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Identity:
    """An Ed25519 private key; its 32-byte public key is the member's name in every message."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public: bytes = key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity({self.public.hex()[:16]}…)"

    @classmethod
    def generate(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    def sign(self, purpose: str, body: bytes | memoryview) -> bytes:
        """Signature of 64 bytes over `body` for `purpose`; see `verify`."""
        return self._key.sign(_signed_bytes(purpose, self.public, body))

    def to_pem(self) -> bytes:
        """The private key as a file holds it (PKCS#8 PEM)."""
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def save(self, path: Path) -> None:
        """Write the private key (PKCS#8 PEM) to a new file that its owner alone can read.

        Raises:
            FileExistsError: The file is there already; an identity is never overwritten.
        """
        pem = self.to_pem()
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            try:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                path.unlink()  # half a key would stand in the way of a whole one
                raise

    @classmethod
    def load(cls, path: Path) -> Identity:
        """Read a key that `save` wrote.

        Raises:
            SecureAggregationError: FT928, the file cannot be read, is not an Ed25519 key, or others can read
                it.
        """
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                pem = file.read(_MAX_PEM_BYTES)
        except OSError as error:
            raise refusal(
                "FT928", f"the identity key cannot be read: {error.strerror}", where=str(path)
            ) from None
        if mode & 0o077:
            raise refusal(
                "FT928", f"the identity key can be read by others (mode {mode & 0o777:o})", where=str(path)
            )
        try:
            key = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise refusal("FT928", f"not a private key in PEM: {error}", where=str(path)) from None
        if not isinstance(key, Ed25519PrivateKey):
            raise refusal("FT928", f"an Ed25519 key is needed, got {type(key).__name__}", where=str(path))
        return cls(key)
