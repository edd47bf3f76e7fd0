"""What a client computes in each trip, once all checks of the trip have passed.

Pure functions from one state to the next and the body of the answer; the machine that calls them, and
decides when, is in `client`. Round and figure numbers are those of Bonawitz et al. 2017, figure 4.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Sequence

import numpy as np

from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.canonical import canonical
from fedtune.secagg.checks import CheckedAdverts
from fedtune.secagg.derivation import KeySchedule, share_commitment, transcript_hash
from fedtune.secagg.graph import sharing_graph
from fedtune.secagg.identity import Identity, verify
from fedtune.secagg.masks import Mask, Prg, add_masks, pair_sign
from fedtune.secagg.messages import Advert, Binding, Kind, Signed, signature_purpose
from fedtune.secagg.policy import Policy
from fedtune.secagg.primitives import Agreement, new_private_key, open_sealed, public_key, seal
from fedtune.secagg.problems import problem, refusal
from fedtune.secagg.rounding import EncodedUpdate
from fedtune.secagg.shamir import PRIME, SHARE_BYTES, deal
from fedtune.secagg.states import Advertised, Attempt, Confirmed, DealtShares, Masked, Shared
from fedtune.secagg.trips import (
    MASKED_UNDER,
    RECORD_BYTES,
    SALT_BYTES,
    Confirmation,
    MaskedAnswer,
    MaskRequest,
    OpenedShare,
    ShareRecord,
    SharesAnswer,
    UnmaskedAnswer,
    masked_under,
)

__all__ = ["BadShares", "advertise", "confirmed_by", "mask", "masked_bytes", "share", "unmask"]


class BadShares(SecureAggregationError):
    """Sealed shares that do not open or do not match their dealers' commitments.

    Attributes:
        accused: Indices of the dealers, for the refusal that the server gets.
    """

    def __init__(self, problems: Problem | Sequence[Problem], accused: tuple[int, ...] = ()) -> None:
        super().__init__(problems)
        self.accused = accused


def _sealing_context(transcript: bytes, sender: bytes, receiver: bytes) -> bytes:
    return canonical(transcript, sender, receiver)


def advertise(binding: Binding, *, audit_head: bytes, identity: Identity) -> Advertised:
    """R0 (AdvertiseKeys): two fresh key pairs for one attempt, signed together with what it is about."""
    mask_private, seal_private = new_private_key(PRIME), new_private_key(PRIME)
    encoded = binding.encode()
    advert = Advert(
        binding=encoded,
        mask_key=public_key(mask_private),
        seal_key=public_key(seal_private),
        audit_head=audit_head,
    )
    return Advertised(
        binding=binding,
        encoded_binding=encoded,
        mask_private=mask_private,
        seal_private=seal_private,
        advert=Signed.make(identity, Kind.ADVERT, advert.encode()),
    )


def share(
    state: Advertised, adverts: tuple[bytes, ...], checked: CheckedAdverts, *, own: bytes, policy: Policy
) -> tuple[Shared, SharesAnswer]:
    """R1 (ShareKeys): draw b, share b and the masking key with the neighbours, seal, commit.

    Shares go to the others only: a member that answers in R4 gives its b itself, and one that does not
    could not give a share either.
    """
    transcript = transcript_hash(adverts)
    members = len(checked.identities)
    graph = sharing_graph(
        transcript, members, corrupt_fraction=policy.corrupt_fraction, drop_fraction=policy.drop_fraction
    )
    index = checked.identities.index(own)
    attempt = Attempt(
        binding=state.binding,
        transcript=transcript,
        identities=checked.identities,
        own=index,
        graph=graph,
        neighbours=graph.neighbours(index),
    )
    schedule = KeySchedule(transcript=transcript, binding=state.encoded_binding)
    b = new_private_key(PRIME)
    threshold = graph.shape.share_threshold
    coordinates = [neighbour + 1 for neighbour in attempt.neighbours]
    b_shares = deal(b, threshold=threshold, coordinates=coordinates)
    key_shares = deal(state.mask_private, threshold=threshold, coordinates=coordinates)
    mask_side, seal_side = Agreement(state.mask_private), Agreement(state.seal_private)
    records, pair_keys, opening_keys = [], [], []
    for neighbour in attempt.neighbours:
        peer = checked.identities[neighbour]
        try:
            agreed_mask = mask_side.with_peer(checked.mask_keys[neighbour])
            agreed_seal = seal_side.with_peer(checked.seal_keys[neighbour])
        except ValueError:
            raise refusal("FT907", f"member {neighbour} advertised a public key of low order") from None
        pair_keys.append(schedule.pair_mask(agreed_mask, own, peer))
        opening_keys.append(schedule.sealing(agreed_seal, sender=peer, receiver=own))
        dealt = DealtShares(
            b_share=b_shares[neighbour + 1],
            b_salt=secrets.token_bytes(SALT_BYTES),
            key_share=key_shares[neighbour + 1],
            key_salt=secrets.token_bytes(SALT_BYTES),
        )
        b_commitment, key_commitment = _commitments(transcript, dealer=index, receiver=neighbour, dealt=dealt)
        sealed = seal(
            schedule.sealing(agreed_seal, sender=own, receiver=peer),
            dealt.b_share + dealt.b_salt + dealt.key_share + dealt.key_salt,
            _sealing_context(transcript, own, peer),
        )
        record = ShareRecord(b_commitment=b_commitment, key_commitment=key_commitment, sealed=sealed)
        records.append(record.encode())
    following = Shared(
        attempt=attempt,
        schedule=schedule,
        b=b,
        pair_keys=tuple(pair_keys),
        opening_keys=tuple(opening_keys),
    )
    answer = SharesAnswer(
        transcript=transcript, b_commitment=schedule.b_commitment(b, own), records=b"".join(records)
    )
    return following, answer


def _commitments(transcript: bytes, *, dealer: int, receiver: int, dealt: DealtShares) -> tuple[bytes, bytes]:
    of_b = share_commitment(
        "b", transcript=transcript, dealer=dealer, receiver=receiver, salt=dealt.b_salt, share=dealt.b_share
    )
    of_key = share_commitment(
        "key",
        transcript=transcript,
        dealer=dealer,
        receiver=receiver,
        salt=dealt.key_salt,
        share=dealt.key_share,
    )
    return of_b, of_key


def mask(
    state: Shared, request: MaskRequest, update: EncodedUpdate, *, identity: Identity
) -> tuple[Masked, MaskedAnswer]:
    """R2 (MaskedInputCollection): open the shares, then y = q + PRG(b) + Σ ±PRG(k_ij) over U2's neighbours.

    With the vector goes a signature over U2, see `check_statements`.

    Raises:
        BadShares: FT910 for every share that does not open or does not match its commitment.
        SecureAggregationError: FT909, the records are not those of U2's neighbours.
    """
    attempt = state.attempt
    dealt = _open_shares(state, request)
    keys = dict(zip(attempt.neighbours, state.pair_keys, strict=True))
    own_key = state.schedule.self_mask(state.b, attempt.identities[attempt.own])
    masks = [Mask(key=own_key, sign=1)]
    masks += [Mask(key=keys[peer], sign=pair_sign(attempt.own, peer)) for peer in dealt]
    masked = masked_bytes(update, masks, prg=attempt.binding.prg)
    following = Masked(attempt=attempt, u2=request.u2, b=state.b, dealt=dealt)
    statement = identity.sign(MASKED_UNDER, masked_under(attempt.transcript, attempt.members, request.u2))
    return following, MaskedAnswer(transcript=attempt.transcript, statement=statement, masked=masked)


def masked_bytes(update: EncodedUpdate, masks: Sequence[Mask], *, prg: Prg) -> memoryview:
    """The update under its masks as it travels: vector, then lanes, little-endian; copied once."""
    split = update.vector.nbytes
    # NumPy asks for huge pages, which a bytearray does not: its page faults cost as much as several masks.
    buffer = np.empty(split + update.lanes.nbytes, dtype=np.uint8)
    vector = np.frombuffer(buffer, dtype=update.vector.dtype, count=update.vector.size)
    lanes = np.frombuffer(buffer, dtype=update.lanes.dtype, offset=split)
    vector[:], lanes[:] = update.vector, update.lanes
    add_masks(vector, lanes, masks, prg=prg)
    return buffer.data


def _open_shares(state: Shared, request: MaskRequest) -> dict[int, DealtShares]:
    attempt = state.attempt
    own_identity = attempt.identities[attempt.own]
    dealers = [index for index in attempt.neighbours if index in request.u2]
    if len(request.records) != len(dealers) * RECORD_BYTES:
        raise refusal(
            "FT909",
            f"{len(request.records) // RECORD_BYTES} sealed shares came, U2 has {len(dealers)} neighbours",
            where="U2",
        )
    keys = dict(zip(attempt.neighbours, state.opening_keys, strict=True))
    dealt: dict[int, DealtShares] = {}
    problems, accused = [], []
    for position, dealer in enumerate(dealers):
        raw = request.records[position * RECORD_BYTES : (position + 1) * RECORD_BYTES]
        record = ShareRecord.decode(raw)
        peer = attempt.identities[dealer]
        context = _sealing_context(attempt.transcript, peer, own_identity)
        opened = open_sealed(keys[dealer], record.sealed, context)
        shares = _split(opened) if opened is not None else None
        if shares is None or _commitments(
            attempt.transcript, dealer=dealer, receiver=attempt.own, dealt=shares
        ) != (record.b_commitment, record.key_commitment):
            what = "do not open" if shares is None else "do not match the commitments"
            problems.append(
                problem("FT910", f"the shares of member {dealer} {what}", where=f"member {dealer}")
            )
            accused.append(dealer)
        else:
            dealt[dealer] = shares
    if problems:
        raise BadShares(problems, tuple(accused))
    return dealt


def _split(opened: bytes) -> DealtShares:
    half = SHARE_BYTES + SALT_BYTES
    return DealtShares(
        b_share=opened[:SHARE_BYTES],
        b_salt=opened[SHARE_BYTES:half],
        key_share=opened[half : half + SHARE_BYTES],
        key_salt=opened[half + SHARE_BYTES :],
    )


def confirmed_by(state: Confirmed, signatures: tuple[tuple[int, bytes], ...], *, needed: int) -> None:
    """R4: at least `needed` distinct members of U3 signed exactly these sets (round 3, ConsistencyCheck).

    Raises:
        SecureAggregationError: FT911.
    """
    attempt = state.attempt
    signers = [signer for signer, _ in signatures]
    if any(later <= earlier for earlier, later in itertools.pairwise(signers)):
        raise refusal("FT911", "signers repeat or are not in ascending order", where="U3")
    outside = sorted(set(signers) - state.u3)
    if outside:
        raise refusal("FT911", f"signers {outside[:10]} are not in U3", where="U3")
    body = Confirmation(
        transcript=attempt.transcript, members=attempt.members, u2=state.u2, u3=state.u3
    ).encode()
    purpose = signature_purpose(Kind.CONFIRMED)
    valid = 0
    for signer, signature in signatures:
        valid += verify(attempt.identities[signer], purpose, body, signature)
        if valid == needed:
            return
    raise refusal(
        "FT911", f"{valid} members confirmed the sets that this site saw, {needed} are needed", where="U3"
    )


def unmask(state: Confirmed) -> UnmaskedAnswer:
    """R4 (Unmasking): own b, b-shares for U3, key-shares for U2 without U3; never both for anyone."""
    gone = state.u2 - state.u3
    return UnmaskedAnswer(
        transcript=state.attempt.transcript,
        own_b=state.b,
        b_shares=tuple(
            OpenedShare(dealer=dealer, share=dealt.b_share, salt=dealt.b_salt)
            for dealer, dealt in sorted(state.dealt.items())
            if dealer in state.u3
        ),
        key_shares=tuple(
            OpenedShare(dealer=dealer, share=dealt.key_share, salt=dealt.key_salt)
            for dealer, dealt in sorted(state.dealt.items())
            if dealer in gone
        ),
    )
