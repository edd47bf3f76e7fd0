"""The bodies of trips R1 to R4; trip R0's are `Binding` and `Advert` in `messages`.

====  =====================================  ==============================================
trip  request, server to client              answer, client to server
====  =====================================  ==============================================
R0    ADVERTISE  Binding                     ADVERT     Advert
R1    SHARE      ShareRequest                SHARES     SharesAnswer
R2    MASK       MaskRequest                 MASKED     MaskedAnswer
R3    CONFIRM    ConfirmRequest              CONFIRMED  Confirmation
R4    UNMASK     UnmaskRequest               UNMASKED   UnmaskedAnswer
====  =====================================  ==============================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedtune.secagg.identity import SIGNATURE_BYTES
from fedtune.secagg.primitives import KEY_BYTES, TAG_BYTES
from fedtune.secagg.shamir import SHARE_BYTES
from fedtune.secagg.wire import HASH_BYTES, MAX_MEMBERS, Reader, blob, pack_members, u32, u64

__all__ = [
    "MASKED_UNDER",
    "RECORD_BYTES",
    "SALT_BYTES",
    "ConfirmRequest",
    "Confirmation",
    "MaskRequest",
    "MaskedAnswer",
    "OpenedShare",
    "ShareRecord",
    "ShareRequest",
    "SharesAnswer",
    "UnmaskRequest",
    "UnmaskedAnswer",
    "masked_under",
]

SALT_BYTES: Final = 16
_SEALED_BYTES: Final = 2 * (SHARE_BYTES + SALT_BYTES) + TAG_BYTES
RECORD_BYTES: Final = 2 * HASH_BYTES + _SEALED_BYTES
_MAX_ADVERT: Final = 4096
_MAX_VECTOR: Final = 2**40


@dataclass(frozen=True, kw_only=True)
class ShareRequest:
    """R1: the adverts of U1, as their senders signed them.

    Attributes:
        binding: Encoded `Binding`, so that a late request of an earlier attempt is known for what it is.
        adverts: Signed ADVERT messages in the order of their senders' identities.
    """

    binding: bytes
    adverts: tuple[bytes, ...]

    def encode(self) -> bytes:
        return blob(self.binding) + u32(len(self.adverts)) + b"".join(blob(item) for item in self.adverts)

    @classmethod
    def decode(cls, body: bytes | memoryview) -> ShareRequest:
        reader = Reader(body, "share request")
        binding = reader.blob("binding", 2048)
        count = reader.count("advert count")
        adverts = tuple(reader.blob("advert", _MAX_ADVERT) for _ in range(count))
        reader.end()
        return cls(binding=binding, adverts=adverts)


@dataclass(frozen=True, kw_only=True)
class ShareRecord:
    """What a dealer sends to one neighbour: salted hashes of both shares, and the shares under seal."""

    b_commitment: bytes
    key_commitment: bytes
    sealed: bytes

    def encode(self) -> bytes:
        return self.b_commitment + self.key_commitment + self.sealed

    @classmethod
    def decode(cls, raw: bytes | memoryview) -> ShareRecord:
        reader = Reader(raw, "share record")
        record = cls(
            b_commitment=reader.fixed("b_commitment", HASH_BYTES),
            key_commitment=reader.fixed("key_commitment", HASH_BYTES),
            sealed=reader.fixed("sealed", _SEALED_BYTES),
        )
        reader.end()
        return record


def _records(reader: Reader) -> bytes:
    raw = reader.blob("records", MAX_MEMBERS * RECORD_BYTES)
    if len(raw) % RECORD_BYTES:
        raise reader.fail("records", f"has {len(raw)} bytes, not a multiple of {RECORD_BYTES}")
    return raw


@dataclass(frozen=True, kw_only=True)
class SharesAnswer:
    """R1: a dealer's commitment to b, and one record for each of its neighbours, ascending.

    The records stay one block of bytes: a server of 1,000 members holds hundreds of thousands.
    """

    transcript: bytes
    b_commitment: bytes
    records: bytes

    def encode(self) -> bytes:
        return self.transcript + self.b_commitment + blob(self.records)

    @classmethod
    def decode(cls, body: bytes | memoryview) -> SharesAnswer:
        reader = Reader(body, "shares")
        transcript = reader.fixed("transcript", HASH_BYTES)
        b_commitment = reader.fixed("b_commitment", HASH_BYTES)
        records = _records(reader)
        reader.end()
        return cls(transcript=transcript, b_commitment=b_commitment, records=records)

    def record(self, position: int) -> bytes:
        return self.records[position * RECORD_BYTES : (position + 1) * RECORD_BYTES]


@dataclass(frozen=True, kw_only=True)
class MaskRequest:
    """R2: U2, who dealt shares, and what the receiver's neighbours in U2 dealt to it, ascending."""

    transcript: bytes
    members: int
    u2: frozenset[int]
    records: bytes

    def encode(self) -> bytes:
        return (
            self.transcript
            + u32(self.members)
            + blob(pack_members(self.u2, self.members))
            + blob(self.records)
        )

    @classmethod
    def decode(cls, body: bytes | memoryview) -> MaskRequest:
        reader = Reader(body, "mask request")
        transcript = reader.fixed("transcript", HASH_BYTES)
        members = reader.count("members")
        u2 = reader.members("u2", members)
        records = _records(reader)
        reader.end()
        return cls(transcript=transcript, members=members, u2=u2, records=records)


MASKED_UNDER: Final = "masked under these members"
"""Purpose of the signature over `masked_under`."""


def masked_under(transcript: bytes, members: int, u2: frozenset[int]) -> bytes:
    """What a member signs with its masked vector: the U2 whose masks are in it."""
    return transcript + u32(members) + blob(pack_members(u2, members))


@dataclass(frozen=True, kw_only=True)
class MaskedAnswer:
    """R2: the masked vector, then the masked lanes, little-endian.

    Attributes:
        statement: The member's signature over `masked_under` of the U2 that it masked for.
    """

    transcript: bytes
    statement: bytes
    masked: bytes | memoryview

    def encode(self) -> bytes:
        return b"".join((self.transcript, self.statement, u64(len(self.masked)), self.masked))

    @classmethod
    def decode(cls, body: bytes | memoryview) -> MaskedAnswer:
        reader = Reader(body, "masked vector")
        transcript = reader.fixed("transcript", HASH_BYTES)
        statement = reader.fixed("statement", SIGNATURE_BYTES)
        masked = reader.blob_view("masked", _MAX_VECTOR)
        reader.end()
        return cls(transcript=transcript, statement=statement, masked=masked)


@dataclass(frozen=True, kw_only=True)
class ConfirmRequest:
    """R3: U3, whose masked vectors arrived, and what each of them signed with its vector, ascending."""

    transcript: bytes
    members: int
    u3: frozenset[int]
    statements: tuple[bytes, ...]

    def encode(self) -> bytes:
        head = self.transcript + u32(self.members) + blob(pack_members(self.u3, self.members))
        return head + u32(len(self.statements)) + b"".join(self.statements)

    @classmethod
    def decode(cls, body: bytes | memoryview) -> ConfirmRequest:
        reader = Reader(body, "confirm request")
        transcript = reader.fixed("transcript", HASH_BYTES)
        members = reader.count("members")
        u3 = reader.members("u3", members)
        statements = tuple(
            reader.fixed("statement", SIGNATURE_BYTES) for _ in range(reader.count("statement count"))
        )
        reader.end()
        return cls(transcript=transcript, members=members, u3=u3, statements=statements)


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """R3: the sets that a member saw; its signature over these bytes is what R4 shows to the others."""

    transcript: bytes
    members: int
    u2: frozenset[int]
    u3: frozenset[int]

    def encode(self) -> bytes:
        return (
            self.transcript
            + u32(self.members)
            + blob(pack_members(self.u2, self.members))
            + blob(pack_members(self.u3, self.members))
        )

    @classmethod
    def decode(cls, body: bytes | memoryview) -> Confirmation:
        reader = Reader(body, "confirmation")
        transcript = reader.fixed("transcript", HASH_BYTES)
        members = reader.count("members")
        u2 = reader.members("u2", members)
        u3 = reader.members("u3", members)
        reader.end()
        return cls(transcript=transcript, members=members, u2=u2, u3=u3)


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest:
    """R4: signatures over the confirmation, by member, ascending."""

    transcript: bytes
    signatures: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        pairs = b"".join(u32(index) + signature for index, signature in self.signatures)
        return self.transcript + u32(len(self.signatures)) + pairs

    @classmethod
    def decode(cls, body: bytes | memoryview) -> UnmaskRequest:
        reader = Reader(body, "unmask request")
        transcript = reader.fixed("transcript", HASH_BYTES)
        count = reader.count("signature count")
        signatures = tuple(
            (reader.number("signer", 4, maximum=MAX_MEMBERS), reader.fixed("signature", SIGNATURE_BYTES))
            for _ in range(count)
        )
        reader.end()
        return cls(transcript=transcript, signatures=signatures)


@dataclass(frozen=True, kw_only=True)
class OpenedShare:
    """One share that a member releases, with the salt that opens its dealer's commitment."""

    dealer: int
    share: bytes
    salt: bytes


@dataclass(frozen=True, kw_only=True)
class UnmaskedAnswer:
    """R4: the member's own b, its shares of b for U3 and its key shares for U2 without U3."""

    transcript: bytes
    own_b: bytes
    b_shares: tuple[OpenedShare, ...]
    key_shares: tuple[OpenedShare, ...]

    def encode(self) -> bytes:
        return self.transcript + self.own_b + _pack_opened(self.b_shares) + _pack_opened(self.key_shares)

    @classmethod
    def decode(cls, body: bytes | memoryview) -> UnmaskedAnswer:
        reader = Reader(body, "unmasked")
        transcript = reader.fixed("transcript", HASH_BYTES)
        own_b = reader.fixed("own_b", KEY_BYTES)
        b_shares, key_shares = _read_opened(reader), _read_opened(reader)
        reader.end()
        return cls(transcript=transcript, own_b=own_b, b_shares=b_shares, key_shares=key_shares)


def _pack_opened(opened: tuple[OpenedShare, ...]) -> bytes:
    return u32(len(opened)) + b"".join(u32(item.dealer) + item.share + item.salt for item in opened)


def _read_opened(reader: Reader) -> tuple[OpenedShare, ...]:
    return tuple(
        OpenedShare(
            dealer=reader.number("dealer", 4, maximum=MAX_MEMBERS),
            share=reader.fixed("share", SHARE_BYTES),
            salt=reader.fixed("salt", SALT_BYTES),
        )
        for _ in range(reader.count("share count"))
    )
