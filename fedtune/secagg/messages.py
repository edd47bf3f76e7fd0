"""The bytes of every trip.

    frame    "FTSA" | protocol version | kind | body                             from the server
    signed   "FTSA" | protocol version | kind | sender | signature | body        from a client

A client's signature covers the kind, the sender and the body, so no message can be passed off as another
member's or as one of another trip; every body names its attempt, by its `Binding` in the first trip and by
the transcript hash R from then on. Members are named by their index in the cohort U1, which R fixes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from typing import Final

from fedtune.secagg.identity import IDENTITY_BYTES, SIGNATURE_BYTES, Identity, verify
from fedtune.secagg.masks import PRGS, Prg
from fedtune.secagg.primitives import KEY_BYTES
from fedtune.secagg.problems import refusal
from fedtune.secagg.wire import HASH_BYTES, MAX_MEMBERS, Reader, blob, u8, u32, u64

__all__ = ["Advert", "Binding", "Kind", "Refusal", "Signed", "frame", "open_frame", "signature_purpose"]

_MAGIC: Final = b"FTSA"
_VERSION: Final = 1
_HEADER: Final = len(_MAGIC) + 2
_MAX_NAME: Final = 256
_MAX_REASON: Final = 2000


class Kind(IntEnum):
    """What a message is; even numbers come from clients and are signed."""

    ADVERTISE = 1
    ADVERT = 2
    SHARE = 3
    SHARES = 4
    MASK = 5
    MASKED = 6
    CONFIRM = 7
    CONFIRMED = 8
    UNMASK = 9
    UNMASKED = 10
    REFUSED = 12


def signature_purpose(kind: Kind) -> str:
    return f"message {kind.name.lower()}"


def frame(kind: Kind, *body: bytes) -> bytes:
    """A message; unsigned if the body is all there is, as from the server."""
    return b"".join((_MAGIC, u8(_VERSION), u8(kind), *body))


def open_frame(data: bytes | memoryview) -> tuple[Kind, memoryview]:
    """Kind and body of any message.

    Raises:
        SecureAggregationError: FT901, not one of ours or of another protocol version.
    """
    reader = Reader(data, "message")
    if reader.fixed("magic", len(_MAGIC)) != _MAGIC:
        raise refusal("FT901", "message does not start with the mark of fedtune's secure aggregation")
    version = reader.number("version", 1)
    if version != _VERSION:
        raise refusal("FT901", f"message speaks protocol version {version}, this is version {_VERSION}")
    number = reader.number("kind", 1)
    if number not in Kind._value2member_map_:
        raise refusal("FT901", f"message is of unknown kind {number}")
    return Kind(number), memoryview(data)[_HEADER:]


@dataclass(frozen=True, kw_only=True)
class Signed:
    """A client's message as it travels; `verified` says whether the sender's key made it."""

    kind: Kind
    sender: bytes
    signature: bytes
    body: memoryview

    @classmethod
    def make(cls, identity: Identity, kind: Kind, body: bytes) -> bytes:
        signature = identity.sign(signature_purpose(kind), body)
        return frame(kind, identity.public, signature, body)

    @classmethod
    def read(cls, data: bytes | memoryview) -> Signed:
        """Take a signed message apart, without judging it.

        Raises:
            SecureAggregationError: FT901.
        """
        kind, rest = open_frame(data)
        if kind % 2:
            raise refusal("FT901", f"a {kind.name.lower()} message comes from a server and is not signed")
        reader = Reader(rest, kind.name.lower())
        sender = reader.fixed("sender", IDENTITY_BYTES)
        signature = reader.fixed("signature", SIGNATURE_BYTES)
        return cls(
            kind=kind, sender=sender, signature=signature, body=rest[IDENTITY_BYTES + SIGNATURE_BYTES :]
        )

    def verified(self) -> bool:
        return verify(self.sender, signature_purpose(self.kind), self.body, self.signature)


def _prg(reader: Reader) -> Prg:
    name = reader.text("prg", _MAX_NAME)
    for prg in PRGS:
        if name == prg:
            return prg
    raise reader.fail("prg", f"is {name!r}, not one of {PRGS}")


@dataclass(frozen=True, kw_only=True)
class Binding:
    """What one attempt is about; equal at all its members, and part of everything derived from it.

    Attributes:
        run: Name of the run.
        round: Number of the round, from 1.
        attempt: Number of the attempt at this round, from 1.
        ring_bits: Width of the ring.
        prg: Stream cipher of the masks.
        corrupt_ppm: Assumed corrupt share of a cohort above 128 members, in millionths.
        drop_ppm: Assumed share of dropouts there, in millionths.
        base_hash: H(base model).
        adapter_hash: H(adapter that the round starts from).
        config_hash: H(configuration that shapes training).
        encoding_hash: H(encoding), see `Encoding.hash`.
        roster_hash: Head of the roster's chain.
    """

    run: str
    round: int
    attempt: int
    ring_bits: int
    prg: Prg
    corrupt_ppm: int
    drop_ppm: int
    base_hash: bytes
    adapter_hash: bytes
    config_hash: bytes
    encoding_hash: bytes
    roster_hash: bytes

    def encode(self) -> bytes:
        hashes = (
            self.base_hash, self.adapter_hash, self.config_hash, self.encoding_hash, self.roster_hash,
        )  # fmt: skip
        if any(len(value) != HASH_BYTES for value in hashes):
            raise ValueError("hashes have 32 bytes")
        return b"".join(
            [
                blob(self.run.encode()), u64(self.round), u32(self.attempt), u8(self.ring_bits),
                blob(self.prg.encode()), u32(self.corrupt_ppm), u32(self.drop_ppm), *hashes,
            ]
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Binding:
        reader = Reader(data, "binding")
        binding = cls(
            run=reader.text("run", _MAX_NAME),
            round=reader.number("round", 8),
            attempt=reader.number("attempt", 4),
            ring_bits=reader.number("ring_bits", 1),
            prg=_prg(reader),
            corrupt_ppm=reader.number("corrupt_ppm", 4, maximum=1_000_000),
            drop_ppm=reader.number("drop_ppm", 4, maximum=1_000_000),
            base_hash=reader.fixed("base_hash", HASH_BYTES),
            adapter_hash=reader.fixed("adapter_hash", HASH_BYTES),
            config_hash=reader.fixed("config_hash", HASH_BYTES),
            encoding_hash=reader.fixed("encoding_hash", HASH_BYTES),
            roster_hash=reader.fixed("roster_hash", HASH_BYTES),
        )
        reader.end()
        return binding

    def differences(self, other: Binding) -> tuple[str, ...]:
        """Names of the fields in which two attempts differ."""
        return tuple(
            field.name for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)
        )


@dataclass(frozen=True, kw_only=True)
class Advert:
    """Trip R0: the keys of one attempt, signed by the member's identity.

    Attributes:
        binding: The encoded `Binding`; compared as bytes, for a cohort of 1,000 has as many.
        mask_key: X25519 public key of the pairwise masks; its private half is what shares reconstruct.
        seal_key: X25519 public key of the sealed shares; its private half is never shared.
        audit_head: Head of the site's audit chain, 32 bytes.
    """

    binding: bytes
    mask_key: bytes
    seal_key: bytes
    audit_head: bytes

    def encode(self) -> bytes:
        return blob(self.binding) + self.mask_key + self.seal_key + self.audit_head

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Advert:
        reader = Reader(body, "advert")
        advert = cls(
            binding=reader.blob("binding", 2048),
            mask_key=reader.fixed("mask_key", KEY_BYTES),
            seal_key=reader.fixed("seal_key", KEY_BYTES),
            audit_head=reader.fixed("audit_head", HASH_BYTES),
        )
        reader.end()
        return advert


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A client's answer instead of the expected one: it has dropped out of the attempt, and says why.

    Attributes:
        transcript: R of the attempt it concerns; zeros where there is none yet.
        code: FT9xx.
        reason: For people, at most 2,000 bytes.
        accused: Indices of members whose message failed a check.
    """

    transcript: bytes
    code: str
    reason: str
    accused: tuple[int, ...] = ()

    def encode(self) -> bytes:
        reason = self.reason.encode()[:_MAX_REASON].decode(errors="ignore").encode()
        accused = b"".join(u32(index) for index in self.accused)
        return self.transcript + blob(self.code.encode()) + blob(reason) + u32(len(self.accused)) + accused

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Refusal:
        reader = Reader(body, "refusal")
        transcript = reader.fixed("transcript", HASH_BYTES)
        code = reader.text("code", 8)
        reason = reader.text("reason", _MAX_REASON)
        count = reader.count("accused count")
        accused = tuple(reader.number("accused", 4, maximum=MAX_MEMBERS) for _ in range(count))
        reader.end()
        return cls(transcript=transcript, code=code, reason=reason, accused=accused)
