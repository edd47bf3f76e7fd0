"""What the server checks about each answer before it counts; one function for each trip.

All of them raise FT922 with what is wrong about the answer; the machine in `server` names the sender and
leaves the answer out.
"""

from __future__ import annotations

from typing import Literal

from fedtune.secagg.collected import Cohort, Collected
from fedtune.secagg.derivation import share_commitment
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.identity import verify
from fedtune.secagg.messages import Advert, Binding
from fedtune.secagg.problems import refusal
from fedtune.secagg.trips import (
    MASKED_UNDER,
    RECORD_BYTES,
    Confirmation,
    MaskedAnswer,
    OpenedShare,
    ShareRecord,
    SharesAnswer,
    UnmaskedAnswer,
    masked_under,
)

__all__ = ["take_advert", "take_confirmation", "take_masked", "take_shares", "take_unmasked"]


def take_advert(advert: Advert, *, binding: Binding, others: Collected) -> None:
    """R0: about this attempt, and with keys that nobody else has."""
    if advert.binding != binding.encode():
        raise refusal("FT922", "the advert is about another attempt, model, configuration or roster")
    keys = {advert.mask_key, advert.seal_key}
    taken = {key for _, other in others.adverts.values() for key in (other.mask_key, other.seal_key)}
    if len(keys) != 2 or keys & taken:
        raise refusal("FT922", "the advert repeats a public key")


def take_shares(answer: SharesAnswer, *, member: int, cohort: Cohort) -> None:
    """R1: of this cohort, with one record for each neighbour."""
    _of_this(answer.transcript, cohort)
    records, neighbours = len(answer.records) // RECORD_BYTES, len(cohort.neighbours[member])
    if records != neighbours:
        raise refusal("FT922", f"{records} sealed shares came for {neighbours} neighbours")


def take_masked(answer: MaskedAnswer, *, sender: bytes, collected: Collected, encoding: Encoding) -> None:
    """R2: of this cohort, as long as the encoding says, and signed for the U2 that was sent out."""
    cohort = collected.cohort
    _of_this(answer.transcript, cohort)
    body = masked_under(cohort.transcript, cohort.members, collected.u2)
    if not verify(sender, MASKED_UNDER, body, answer.statement):
        raise refusal("FT922", "the vector was masked for other members than those of U2")
    if len(answer.masked) != encoding.nbytes:
        raise refusal(
            "FT922", f"the masked vector has {len(answer.masked)} bytes, expected {encoding.nbytes}"
        )


def take_confirmation(answer: Confirmation, *, collected: Collected) -> None:
    """R3: over exactly the sets that were sent out."""
    cohort = collected.cohort
    _of_this(answer.transcript, cohort)
    if (answer.members, answer.u2, answer.u3) != (cohort.members, collected.u2, collected.u3):
        raise refusal("FT922", "the confirmation is over other sets than those of this attempt")


def take_unmasked(answer: UnmaskedAnswer, *, member: int, collected: Collected) -> list[str]:
    """R4: keep what opens its dealer's commitment, leave out the rest.

    Returns:
        What is wrong with this member's answer, one line for each share or secret; empty if nothing is.

    Raises:
        SecureAggregationError: FT922, the answer as a whole is not the expected one.
    """
    cohort = collected.cohort
    _of_this(answer.transcript, cohort)
    around = cohort.neighbours[member]
    gone = collected.u2 - collected.u3
    wrong = []
    for kind, shares, dealers in (
        ("b", answer.b_shares, [index for index in around if index in collected.u3]),
        ("key", answer.key_shares, [index for index in around if index in gone]),
    ):
        if [item.dealer for item in shares] != dealers:
            raise refusal("FT922", f"the answer holds {kind}-shares of other members than it should")
    own = cohort.schedule.b_commitment(answer.own_b, cohort.identities[member])
    if own == collected.shares[member].b_commitment:
        collected.own_b[member] = answer.own_b
    else:
        wrong.append("its own b is not the one it committed to")
    wrong += _keep_opened("b", answer.b_shares, member=member, collected=collected)
    wrong += _keep_opened("key", answer.key_shares, member=member, collected=collected)
    return wrong


def _keep_opened(
    kind: Literal["b", "key"],
    shares: tuple[OpenedShare, ...],
    *,
    member: int,
    collected: Collected,
) -> list[str]:
    cohort = collected.cohort
    wrong = []
    for item in shares:
        raw = collected.shares[item.dealer].record(cohort.place(item.dealer, member))
        record = ShareRecord.decode(raw)
        expected = record.b_commitment if kind == "b" else record.key_commitment
        commitment = share_commitment(
            kind,
            transcript=cohort.transcript,
            dealer=item.dealer,
            receiver=member,
            salt=item.salt,
            share=item.share,
        )
        if commitment == expected:
            collected.released[kind].setdefault(item.dealer, {})[member + 1] = item.share
        else:
            wrong.append(f"its {kind}-share of member {item.dealer} is not the one it was dealt")
    return wrong


def _of_this(transcript: bytes, cohort: Cohort) -> None:
    if transcript != cohort.transcript:
        raise refusal("FT922", "the answer belongs to another attempt or cohort")
