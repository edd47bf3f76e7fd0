"""The cryptographic primitives, each a thin call into the `cryptography` package.

========================  ==========================  =====================================
what                      primitive                   reference
========================  ==========================  =====================================
key agreement             X25519                      RFC 7748
key derivation            HKDF-SHA256                 RFC 5869
sealing of shares         ChaCha20-Poly1305           RFC 8439
========================  ==========================  =====================================

Signatures are in `identity`, the mask streams in `masks`, secret sharing in `shamir`.
"""

from __future__ import annotations

import secrets
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

__all__ = [
    "KEY_BYTES",
    "TAG_BYTES",
    "Agreement",
    "hkdf",
    "new_private_key",
    "open_sealed",
    "public_key",
    "seal",
]

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
_NONCE: Final = bytes(12)  # every sealing key seals one message, so the nonce never repeats under a key


def new_private_key(below: int) -> bytes:
    """A raw X25519 private key, 32 random bytes whose big-endian value is below the sharing field's prime.

    RFC 7748 clamps when the key is used, so any 32 bytes are a key; the bound only makes it shareable.
    """
    return secrets.randbelow(below).to_bytes(KEY_BYTES, "big")


def public_key(private: bytes) -> bytes:
    """The 32-byte X25519 public key of a raw private key."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


class Agreement:
    """One side of X25519; loading a private key costs as much as using it, so it is loaded once.

    Args:
        private: Raw private key, 32 bytes.
    """

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)

    def with_peer(self, public: bytes) -> bytes:
        """The raw shared secret, 32 bytes; only ever an input to `hkdf`.

        Raises:
            ValueError: The public key is of low order (the shared secret would be zero).
        """
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


def hkdf(secret: bytes, *, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869, extract and expand) to one 32-byte key."""
    return HKDF(algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)


def seal(key: bytes, message: bytes, associated: bytes) -> bytes:
    """Authenticated encryption under a key that seals exactly one message; 16 bytes longer than it."""
    return ChaCha20Poly1305(key).encrypt(_NONCE, message, associated)


def open_sealed(key: bytes, sealed: bytes, associated: bytes) -> bytes | None:
    """The message, or None if the bytes, the key or the associated data are not the sealed ones."""
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, associated)
    except InvalidTag:
        return None
