"""Members that lie: their answers are left out, and they are named, or the round is burnt and they are named.

The evil client is a real one whose answer is changed and signed again with its own key.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.secure_sum import Federation, federation

from fedtune.errors import SecureAggregationError
from fedtune.secagg import steps
from fedtune.secagg.collected import Trip
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.messages import Advert, Kind, Signed, open_frame
from fedtune.secagg.rounds import finish_attempt, secure_round
from fedtune.secagg.shamir import deal
from fedtune.secagg.trips import (
    Confirmation,
    MaskedAnswer,
    SharesAnswer,
    UnmaskedAnswer,
)

EVIL = 1
BODIES = {
    Kind.ADVERT: Advert,
    Kind.SHARES: SharesAnswer,
    Kind.MASKED: MaskedAnswer,
    Kind.CONFIRMED: Confirmation,
    Kind.UNMASKED: UnmaskedAnswer,
}


@pytest.fixture
def parties(tmp_path: Path) -> Federation:
    return federation(tmp_path, 7)


def lying(parties: Federation, kind: Kind, change: Callable, *, absent: dict | None = None) -> Callable:
    """A transport over which member EVIL changes its answers of one kind."""
    honest = parties.send(absent=absent)
    evil = parties.identities[EVIL]

    def send(requests):
        for reply in honest(requests):
            signed = Signed.read(reply)
            if signed.sender == evil.public and signed.kind is kind:
                crafted = change(BODIES[kind].decode(signed.body))
                yield Signed.make(evil, kind, crafted if isinstance(crafted, bytes) else crafted.encode())
            else:
                yield reply

    return send


def assert_sum_of(parties: Federation, attempt, members: set[int]) -> None:
    vector, lanes = parties.plain_sum(members)
    np.testing.assert_array_equal(attempt.result.vector, vector)
    np.testing.assert_array_equal(attempt.result.lanes, lanes)


def faults_of(attempt) -> list[str]:
    return [fault.problem.what for fault in attempt.collected.faults]


def flipped(raw: bytes, at: int = 0) -> bytes:
    changed = bytearray(raw)
    changed[at] ^= 1
    return bytes(changed)


def test_a_wrong_share_is_skipped_and_its_sender_named(parties: Federation) -> None:
    def wrong(answer: UnmaskedAnswer) -> UnmaskedAnswer:
        first, *rest = answer.key_shares
        return replace(answer, key_shares=(replace(first, share=flipped(first.share)), *rest))

    attempt = parties.attempt()
    send = lying(parties, Kind.UNMASKED, wrong, absent={Kind.MASK: frozenset({5})})
    finish_attempt(attempt, send)
    assert_sum_of(parties, attempt, {0, 1, 2, 3, 4, 6})
    assert faults_of(attempt) == ["site-0001: its key-share of member 5 is not the one it was dealt"]


def test_a_wrong_b_is_replaced_by_the_others_shares_of_it(parties: Federation) -> None:
    attempt = parties.attempt()
    finish_attempt(
        attempt, lying(parties, Kind.UNMASKED, lambda answer: replace(answer, own_b=flipped(answer.own_b)))
    )
    assert_sum_of(parties, attempt, set(range(7)))
    assert faults_of(attempt) == ["site-0001: its own b is not the one it committed to"]


def test_shares_of_the_wrong_members_are_left_out_as_a_whole(parties: Federation) -> None:
    attempt = parties.attempt()
    finish_attempt(
        attempt,
        lying(parties, Kind.UNMASKED, lambda answer: replace(answer, b_shares=answer.b_shares[:-1])),
    )
    assert_sum_of(parties, attempt, set(range(7)))
    assert "holds b-shares of other members than it should" in faults_of(attempt)[0]


@pytest.mark.parametrize(
    ("trip", "published"),
    [(Kind.MASK, "the masking key it advertised"), (Kind.UNMASK, "its commitment to b")],
)
def test_an_inconsistent_dealer_burns_the_round_and_is_named(
    parties: Federation, monkeypatch: pytest.MonkeyPatch, trip: Kind, published: str
) -> None:
    """Its shares open their commitments but lie on no polynomial of the secret it published."""
    original = parties.clients[EVIL].handle

    def bent(value: bytes, *, threshold: int, coordinates):
        shares = deal(value, threshold=threshold, coordinates=coordinates)
        lowest = min(shares)
        return shares | {lowest: flipped(shares[lowest], 31)}

    def handle(request: bytes) -> bytes:
        with monkeypatch.context() as patch:
            if open_frame(request)[0] is Kind.SHARE:
                patch.setattr(steps, "deal", bent)
            return original(request)

    monkeypatch.setattr(parties.clients[EVIL], "handle", handle)
    attempt = parties.attempt()
    with pytest.raises(SecureAggregationError) as caught:
        finish_attempt(attempt, parties.send(absent={trip: frozenset({EVIL})}))
    assert [item.code for item in caught.value.problems] == ["FT921", "FT923"]
    assert f"the shares that site-0001 dealt do not give {published}" in caught.value.problems[1].what
    assert attempt.trip is Trip.BURNT
    assert attempt.suspects() == {parties.identities[EVIL].public}


def test_a_false_commitment_to_b_burns_the_round_when_b_has_to_be_rebuilt(parties: Federation) -> None:
    attempt = parties.attempt()
    send = lying(
        parties, Kind.SHARES, lambda answer: replace(answer, b_commitment=flipped(answer.b_commitment))
    )
    with pytest.raises(SecureAggregationError, match=r"FT923.*site-0001"):
        finish_attempt(attempt, send)
    assert "its own b is not the one it committed to" in faults_of(attempt)[0]


def test_a_false_commitment_to_a_share_is_noticed_before_anything_is_masked(parties: Federation) -> None:
    """All neighbours refuse, nothing was opened, and the retry goes on without the dealer."""
    send = lying(
        parties,
        Kind.SHARES,
        lambda answer: replace(
            answer, records=b"".join(flipped(answer.record(position)) for position in range(6))
        ),
    )
    outcome = secure_round(parties.rules(), invited=parties.members, send=send, attempts=2)
    assert outcome.attempts == 2
    assert parties.identities[EVIL].public not in outcome.total.cohort
    assert len(outcome.total.cohort) == 6


def test_shares_sealed_for_one_member_wrongly_cost_both_sides_of_the_quarrel(parties: Federation) -> None:
    attempt = parties.attempt()
    send = lying(parties, Kind.SHARES, lambda answer: replace(answer, records=flipped(answer.records, 100)))
    finish_attempt(attempt, send)
    assert_sum_of(parties, attempt, set(range(7)) - {0})
    assert "refused with FT910: the shares of member 1 do not open" in faults_of(attempt)[0]
    assert attempt.suspects() == {parties.identities[0].public, parties.identities[EVIL].public}


@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_masked_vector_of_the_wrong_length_is_left_out(parties: Federation, cut: int) -> None:
    attempt = parties.attempt()
    finish_attempt(
        attempt,
        lying(parties, Kind.MASKED, lambda answer: replace(answer, masked=bytes(answer.masked)[cut:])),
    )
    assert_sum_of(parties, attempt, set(range(7)) - {EVIL})
    assert f"has {176 - cut} bytes, expected 176" in faults_of(attempt)[0]


def test_too_few_sealed_shares_are_left_out(parties: Federation) -> None:
    attempt = parties.attempt()
    finish_attempt(
        attempt, lying(parties, Kind.SHARES, lambda answer: replace(answer, records=answer.records[176:]))
    )
    assert_sum_of(parties, attempt, set(range(7)) - {EVIL})
    assert "5 sealed shares came for 6 neighbours" in faults_of(attempt)[0]


def test_a_confirmation_over_other_sets_does_not_count(parties: Federation) -> None:
    attempt = parties.attempt()
    finish_attempt(
        attempt,
        lying(parties, Kind.CONFIRMED, lambda answer: replace(answer, u3=answer.u3 - {0})),
    )
    assert_sum_of(parties, attempt, set(range(7)))
    assert "over other sets" in faults_of(attempt)[0]


def test_answers_replayed_from_an_earlier_attempt_do_not_count(parties: Federation) -> None:
    """A member that answers with what it, or another, sent in attempt 1."""
    recorded: dict[Kind, bytes] = {}
    first = parties.attempt(1)

    def record(requests):
        for reply in parties.send(absent={Kind.CONFIRM: frozenset(range(7))})(requests):
            signed = Signed.read(reply)
            if signed.sender == parties.identities[EVIL].public:
                recorded[signed.kind] = reply
            yield reply

    with pytest.raises(SecureAggregationError, match="FT921"):
        finish_attempt(first, record)
    for kind in (Kind.ADVERT, Kind.SHARES, Kind.MASKED):
        second = parties.attempt(2 + list(BODIES).index(kind))

        def replay(requests, kind=kind):
            for reply in parties.send()(requests):
                signed = Signed.read(reply)
                evil = signed.sender == parties.identities[EVIL].public
                yield recorded[kind] if evil and signed.kind is kind else reply

        while second.trip.value is not Kind.CONFIRMED:
            for reply in replay(second.requests()):
                second.receive(reply)
            second.advance()
        (fault,) = [fault for fault in second.collected.faults if fault.trip is kind]
        assert fault.site == "site-0001"
        assert "another attempt" in fault.problem.what


def test_nobody_answers_in_anothers_name(parties: Federation) -> None:
    """A message with a victim's name and the evil member's signature is nobody's, and the victim's counts."""
    attempt = parties.attempt()
    evil, victim = parties.identities[EVIL], parties.identities[4]
    for reply in parties.send()(attempt.requests()):
        signed = Signed.read(reply)
        if signed.sender == evil.public:
            forged = bytearray(reply)
            forged[6:38] = victim.public
            assert attempt.receive(bytes(forged)) is None
        attempt.receive(reply)
    assert not attempt.collected.faults
    assert len(attempt.collected.adverts) == 7


def test_a_stranger_and_unreadable_bytes_are_ignored(parties: Federation) -> None:
    attempt = parties.attempt()
    for rubbish in (b"", b"FTSA", bytes(500), next(iter(attempt.requests().values()))):
        assert attempt.receive(rubbish) is None
    assert not attempt.collected.faults


def test_a_key_that_another_member_advertised_is_refused_to_the_copier(parties: Federation) -> None:
    attempt = parties.attempt()
    replies = list(parties.send()(attempt.requests()))
    victim = Advert.decode(Signed.read(replies[0]).body)
    own = Advert.decode(Signed.read(replies[EVIL]).body)
    copied = Signed.make(
        parties.identities[EVIL], Kind.ADVERT, replace(own, mask_key=victim.mask_key).encode()
    )
    attempt.receive(replies[0])
    fault = attempt.receive(copied)
    assert fault is not None
    assert "repeats a public key" in fault.problem.what


def lie_in_lane(parties: Federation, *, lane: int, value: int) -> None:
    """What a member with its own software would hold: our client refuses to."""
    client = parties.clients[EVIL]
    update = client._held.update
    lanes = update.lanes.copy()
    lanes[lane] = value
    client._held = replace(client._held, update=replace(update, lanes=lanes))


def test_a_false_count_lane_burns_the_round(tmp_path: Path) -> None:
    parties = federation(tmp_path, 5)
    lie_in_lane(parties, lane=0, value=2)
    with pytest.raises(SecureAggregationError, match="FT924: the count lane sums to 6, expected 5"):
        parties.run()


def test_a_false_weight_burns_the_round(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4, weights=(1, 2, 4, 8))
    lie_in_lane(parties, lane=1, value=8)
    with pytest.raises(SecureAggregationError, match="FT924: the weight lane sums to 21, expected 15"):
        parties.run()


def test_an_update_encoded_by_other_rules_is_not_held(parties: Federation) -> None:
    rules = parties.encoding
    other = Encoding(tensors=rules.tensors, levels=rules.levels - 1, max_cohort=rules.max_cohort)
    with pytest.raises(SecureAggregationError, match="encoded by other rules"):
        parties.clients[0].hold(parties.updates[0], other, parties.facts[0])


def test_an_update_of_another_weight_than_the_roster_declares_is_not_held(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4, weights=(1, 2, 4, 8))
    with pytest.raises(SecureAggregationError, match="the update has weight 8, the roster says 1"):
        parties.clients[0].hold(parties.updates[3], parties.encoding, parties.facts[0])
