"""A stream of bytes under a passphrase: encrypted, and whole or not at all.

The construction is STREAM of Hoang, Reyhanitabar, Rogaway and Vizár (Online Authenticated-Encryption and its
Nonce-Reuse Misuse-Resistance, CRYPTO 2015), laid out as in the file format age: the plaintext is cut into
chunks of 64 KiB, and each is sealed with AES-256-GCM under a nonce that holds its number and whether it is
the last one. So a chunk that is changed, moved, taken out or put in does not open, nor does the last one of a
file that was cut. The key serves one file alone: scrypt (RFC 7914) makes it of the passphrase and a salt of
128 random bits.

======  ===============================================================================================
bytes
======  ===============================================================================================
17      ``fedtune-backup/1`` and a newline
16      salt
32      second half of what scrypt gave, which tells a wrong passphrase from a damaged file; the first is
        the key
rest    chunks of 64 KiB, each with its tag of 16 bytes after it; the last may be shorter, and is empty
        only if there is no other
======  ===============================================================================================

The nonce is the chunk's number from 0 in 11 bytes, big-endian, and one byte that is 1 for the last chunk and
else 0. The associated data of each chunk is all that stands before the chunks.
"""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from typing import BinaryIO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedtune.coordinator.problems import refusal

__all__ = ["CHUNK_BYTES", "OpeningReader", "SealingWriter", "StreamKey", "new_key", "read_key"]

CHUNK_BYTES: Final = 64 * 2**10

_MAGIC: Final = b"fedtune-backup/1\n"
_SALT_BYTES: Final = 16
_KEY_BYTES: Final = 32
_TAG_BYTES: Final = 16
_HEADER_BYTES: Final = len(_MAGIC) + _SALT_BYTES + _KEY_BYTES
_SCRYPT_N: Final = 2**17


@dataclass(frozen=True, kw_only=True)
class StreamKey:
    """The key of one file, and the header that leads to it."""

    key: bytes
    header: bytes


def new_key(passphrase: bytes) -> StreamKey:
    """Make the key of a new file; takes about half a second and 128 MiB."""
    salt = os.urandom(_SALT_BYTES)
    key, check = _stretched(passphrase, salt)
    return StreamKey(key=key, header=_MAGIC + salt + check)


def read_key(file: BinaryIO, passphrase: bytes, *, where: str) -> StreamKey:
    """Read the header of a file, and make its key.

    Raises:
        FederationError: FT671, the passphrase is another one; FT672, the file has no such header.
    """
    header = file.read(_HEADER_BYTES)
    if not header.startswith(_MAGIC) or len(header) < _HEADER_BYTES:
        raise refusal("FT672", "this is no backup that this version of fedtune can read", where=where)
    salt = header[len(_MAGIC) : -_KEY_BYTES]
    key, check = _stretched(passphrase, salt)
    if not hmac.compare_digest(check, header[-_KEY_BYTES:]):
        raise refusal("FT671", "the backup does not open with this passphrase", where=where)
    return StreamKey(key=key, header=header)


def _stretched(passphrase: bytes, salt: bytes) -> tuple[bytes, bytes]:
    made = Scrypt(salt=salt, length=2 * _KEY_BYTES, n=_SCRYPT_N, r=8, p=1).derive(passphrase)
    return made[:_KEY_BYTES], made[_KEY_BYTES:]


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


class SealingWriter:
    """Encrypts what is written to it; without `finish` the file cannot be opened.

    Args:
        file: Where to; the header is written at once.
        key: From `new_key`, used for nothing else.
    """

    def __init__(self, file: BinaryIO, key: StreamKey) -> None:
        self._file = file
        self._aead = AESGCM(key.key)
        self._header = key.header
        self._number = 0
        self._rest = bytearray()
        file.write(key.header)

    def write(self, data: bytes) -> int:
        """Take some more plaintext, of any length."""
        self._rest += data
        start = 0
        while len(self._rest) - start > CHUNK_BYTES:  # the last one is kept back: it is sealed as such
            self._seal(bytes(self._rest[start : start + CHUNK_BYTES]), last=False)
            start += CHUNK_BYTES
        del self._rest[:start]
        return len(data)

    def finish(self) -> None:
        """Seal the last chunk."""
        self._seal(bytes(self._rest), last=True)

    def _seal(self, chunk: bytes, *, last: bool) -> None:
        self._file.write(self._aead.encrypt(_nonce(self._number, last=last), chunk, self._header))
        self._number += 1


class OpeningReader:
    """Gives the plaintext of a file that `SealingWriter` wrote.

    Guarantee: every byte that it gives was written at this place of this file by who knew the passphrase;
    once it has given an empty result, the file was given whole, from its first byte to its last.

    Args:
        file: Stands behind the header.
        key: From `read_key`.
        where: Named in errors.
    """

    def __init__(self, file: BinaryIO, key: StreamKey, *, where: str) -> None:
        self._file = file
        self._aead = AESGCM(key.key)
        self._header = key.header
        self._where = where
        self._number = 0
        self._opened = b""
        self._next = file.read(CHUNK_BYTES + _TAG_BYTES)
        self._ended = False

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes, fewer only at the end.

        Raises:
            FederationError: FT672, the file is not as it was written.
        """
        parts = []
        while size > 0 and (self._opened or not self._ended):
            if not self._opened:
                self._opened = self._open()
            parts.append(self._opened[:size])
            self._opened = self._opened[size:]
            size -= len(parts[-1])
        return b"".join(parts)

    def _open(self) -> bytes:
        chunk, self._next = self._next, self._file.read(CHUNK_BYTES + _TAG_BYTES)
        self._ended = not self._next
        try:
            opened = self._aead.decrypt(_nonce(self._number, last=self._ended), chunk, self._header)
        except InvalidTag:
            opened = None
        if opened is None or (not opened and self._number):
            what = "the backup is not as it was written: it was changed, or a part of it is missing"
            raise refusal("FT672", what, where=f"{self._where}, from byte {self._number * CHUNK_BYTES} on")
        self._number += 1
        return opened
