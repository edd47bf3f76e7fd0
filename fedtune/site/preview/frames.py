"""The bytes of secure aggregation that a site would send, made of the very types that it sends.

Their lengths depend on the number of members and of parameters alone, so messages of zeros tell them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fedtune.config.schema import Config
from fedtune.federation.secure import policy_of
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.graph import graph_shape
from fedtune.secagg.identity import SIGNATURE_BYTES, Identity
from fedtune.secagg.messages import Advert, Binding, Kind, Signed
from fedtune.secagg.policy import Policy
from fedtune.secagg.primitives import KEY_BYTES
from fedtune.secagg.roster import Roster
from fedtune.secagg.shamir import SHARE_BYTES
from fedtune.secagg.spent import UpdateOrigin
from fedtune.secagg.states import RoundFacts, expected_binding
from fedtune.secagg.trips import (
    RECORD_BYTES,
    SALT_BYTES,
    Confirmation,
    MaskedAnswer,
    OpenedShare,
    ShareRecord,
    SharesAnswer,
    UnmaskedAnswer,
)
from fedtune.secagg.wire import HASH_BYTES

__all__ = ["Frame", "frame_length", "frames", "round_frames"]

_HASH = bytes(HASH_BYTES)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What one trip sends.

    Attributes:
        kind: Of the message.
        body: The type of its body.
        parts: Field of the body to the type of what is packed in it.
        when: In words.
        bytes: With its signature.
    """

    kind: Kind
    body: type
    parts: tuple[tuple[str, type], ...]
    when: str
    bytes: int


def round_frames(config: Config, encoding: Encoding, roster: Roster, round_number: int) -> tuple[Frame, ...]:
    """The five frames of a round in which every site of the roster takes part.

    Args:
        config: The federation's.
        encoding: Of the round.
        roster: The version that this site accepted.
        round_number: Number of the round.
    """
    nothing = UpdateOrigin(base=_HASH, adapter=_HASH, config=_HASH, samples=_HASH)
    facts = RoundFacts(run=config.name, round=round_number, origin=nothing, audit_head=_HASH)
    policy = policy_of(config)
    binding = expected_binding(facts, encoding=encoding, policy=policy, roster=roster, attempt=1)
    return tuple(frames(binding, encoding, policy, members=len(roster.entries)))


def frames(binding: Binding, encoding: Encoding, policy: Policy, *, members: int) -> Iterator[Frame]:
    """The frames of an attempt, in the order in which they are sent.

    Args:
        binding: What it is about.
        encoding: How updates are encoded.
        policy: Says who shares keys with whom in a large cohort.
        members: Of the attempt, all of which stay to its end.
    """
    shape = graph_shape(members, policy.corrupt_fraction, policy.drop_fraction)
    neighbours = members - 1 if shape.complete else 2 * shape.half_degree
    everyone = frozenset(range(members))
    advert = Advert(
        binding=binding.encode(), mask_key=bytes(KEY_BYTES), seal_key=bytes(KEY_BYTES), audit_head=_HASH
    )
    shares = SharesAnswer(transcript=_HASH, b_commitment=_HASH, records=bytes(neighbours * RECORD_BYTES))
    masked = MaskedAnswer(transcript=_HASH, statement=bytes(SIGNATURE_BYTES), masked=b"")
    confirmed = Confirmation(transcript=_HASH, members=members, u2=everyone, u3=everyone)
    opened = tuple(
        OpenedShare(dealer=dealer, share=bytes(SHARE_BYTES), salt=bytes(SALT_BYTES))
        for dealer in range(neighbours)
    )
    unmasked = UnmaskedAnswer(transcript=_HASH, own_b=bytes(KEY_BYTES), b_shares=opened, key_shares=())
    yield Frame(
        kind=Kind.ADVERT,
        body=Advert,
        parts=(("binding", Binding),),
        when="with the reply to training",
        bytes=frame_length(Kind.ADVERT, advert.encode()),
    )
    yield Frame(
        kind=Kind.SHARES,
        body=SharesAnswer,
        parts=(("records", ShareRecord),),
        when="when all adverts are in",
        bytes=frame_length(Kind.SHARES, shares.encode()),
    )
    yield Frame(
        kind=Kind.MASKED,
        body=MaskedAnswer,
        parts=(),
        when="when all shares are in: the update",
        bytes=frame_length(Kind.MASKED, masked.encode()) + encoding.nbytes,
    )
    yield Frame(
        kind=Kind.CONFIRMED,
        body=Confirmation,
        parts=(),
        when="when it is known who is in the sum",
        bytes=frame_length(Kind.CONFIRMED, confirmed.encode()),
    )
    yield Frame(
        kind=Kind.UNMASKED,
        body=UnmaskedAnswer,
        parts=(("b_shares", OpenedShare), ("key_shares", OpenedShare)),
        when="when enough members have confirmed the same",
        bytes=frame_length(Kind.UNMASKED, unmasked.encode()),
    )


def frame_length(kind: Kind, body: bytes) -> int:
    """Bytes of a signed message with this body."""
    return len(Signed.make(Identity.generate(), kind, body))
