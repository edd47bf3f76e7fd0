"""What a malicious coordinator can try: each ends at an honest client, with its reason, releasing nothing.

The evil server is the honest one with one lie: its requests are changed on their way to one client, or to
all. An answer other than a refusal would be the leak.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.secure_sum import Federation, federation, hash_of

from fedtune.errors import SecureAggregationError
from fedtune.secagg.collected import Trip
from fedtune.secagg.identity import Identity
from fedtune.secagg.messages import Advert, Kind, Refusal, Signed, frame, open_frame
from fedtune.secagg.policy import Policy
from fedtune.secagg.primitives import new_private_key, public_key
from fedtune.secagg.roster import sign_entry
from fedtune.secagg.shamir import PRIME
from fedtune.secagg.spent import SpentJournal
from fedtune.secagg.trips import ConfirmRequest, MaskedAnswer, MaskRequest, ShareRequest, UnmaskRequest

VICTIM = 0


def until(parties: Federation, trip: Trip, *, absent: dict | None = None, attempt: int = 1):
    """An honest attempt that stands at this trip, with every client's answers to those before it."""
    server = parties.attempt(attempt)
    send = parties.send(absent=absent)
    while server.trip is not trip:
        for reply in send(server.requests()):
            server.receive(reply)
        server.advance()
    return server


def request_of(server, parties: Federation, index: int = VICTIM) -> bytes:
    return server.requests()[parties.identities[index].public]


def refused(parties: Federation, request: bytes, index: int = VICTIM) -> Refusal:
    """The client's refusal; fails if it answered anything else."""
    signed = Signed.read(parties.clients[index].handle(request))
    assert signed.kind is Kind.REFUSED, f"the client answered with {signed.kind.name}"
    return Refusal.decode(signed.body)


def changed(request: bytes, kind, change: Callable) -> bytes:
    trip, body = open_frame(request)
    return frame(trip, change(kind.decode(body)).encode())


def replace_advert(request: bytes, index: int, make: Callable[[bytes], bytes]) -> bytes:
    def swap(share: ShareRequest) -> ShareRequest:
        adverts = list(share.adverts)
        adverts[index] = make(adverts[index])
        return replace(share, adverts=tuple(adverts))

    return changed(request, ShareRequest, swap)


@pytest.fixture
def parties(tmp_path: Path) -> Federation:
    return federation(tmp_path, 5)


# Trip R0


def test_it_asks_for_another_model_than_the_client_was_given(parties: Federation) -> None:
    for field in ("base_hash", "adapter_hash", "config_hash", "encoding_hash", "roster_hash"):
        binding = replace(parties.rules().binding, **{field: hash_of("crafted")})
        refusal = refused(parties, frame(Kind.ADVERTISE, binding.encode()))
        assert refusal.code == "FT906"
        assert f"asks for another {field}" in refusal.reason
    assert parties.clients[VICTIM].state == "Held"


def test_it_lowers_the_assumed_corruption_to_thin_the_graph(parties: Federation) -> None:
    binding = replace(parties.rules().binding, corrupt_ppm=1)
    assert "another corrupt_ppm" in refused(parties, frame(Kind.ADVERTISE, binding.encode())).reason


def test_it_goes_back_to_an_earlier_attempt(parties: Federation) -> None:
    until(parties, Trip.SHARE, attempt=3)
    for attempt in (1, 2):
        request = request_of(parties.attempt(attempt), parties)
        assert refused(parties, request).code == "FT902"


# Trip R1


def test_it_swaps_a_key_in_an_advert(parties: Federation) -> None:
    server = until(parties, Trip.SHARE)

    def swap(raw: bytes) -> bytes:
        signed = Signed.read(raw)
        advert = replace(Advert.decode(signed.body), mask_key=public_key(new_private_key(PRIME)))
        return frame(Kind.ADVERT, signed.sender + signed.signature + advert.encode())

    refusal = refused(parties, replace_advert(request_of(server, parties), 2, swap))
    assert refusal.code == "FT905"
    assert "site-0002 did not sign this advert" in refusal.reason
    assert parties.clients[VICTIM].state == "Held"


def test_it_swaps_a_key_and_signs_with_an_identity_of_its_own(parties: Federation) -> None:
    server = until(parties, Trip.SHARE)
    mallory = Identity.generate()

    def forge(raw: bytes) -> bytes:
        advert = Advert.decode(Signed.read(raw).body)
        crafted = replace(advert, mask_key=public_key(new_private_key(PRIME)))
        return Signed.make(mallory, Kind.ADVERT, crafted.encode())

    refusal = refused(parties, replace_advert(request_of(server, parties), 2, forge))
    assert "is not in the roster that this site pinned" in refusal.reason


def test_it_replays_the_adverts_of_another_attempt(parties: Federation) -> None:
    old = until(parties, Trip.SHARE, attempt=1)
    new = until(parties, Trip.SHARE, attempt=2)
    stale = old.cohort.adverts[2]
    refusal = refused(parties, replace_advert(request_of(new, parties), 2, lambda _: stale))
    assert refusal.code == "FT906"
    assert "site-0002 advertised for another attempt than this site" in refusal.reason


def test_it_replays_an_advert_of_another_run(tmp_path: Path) -> None:
    parties = federation(tmp_path, 5)
    (tmp_path / "other").mkdir()
    other = federation(tmp_path / "other", 5, hold=False)
    other.facts = [replace(facts, run="run-0") for facts in other.facts]
    other.hold()
    stale = until(other, Trip.SHARE).cohort.adverts[3]
    request = request_of(until(parties, Trip.SHARE), parties)
    assert (
        "advertised for another run" in refused(parties, replace_advert(request, 3, lambda _: stale)).reason
    )


def test_it_shows_different_models_to_different_clients(parties: Federation) -> None:
    """Each client signs the adapter that it saw, so an honest one finds the others' adverts different."""
    crafted = replace(parties.facts[4].origin, adapter=hash_of("crafted"))
    parties.clients[4].hold(parties.updates[4], parties.encoding, replace(parties.facts[4], origin=crafted))
    binding = replace(parties.rules().binding, adapter_hash=hash_of("crafted"))
    seen = parties.clients[4].handle(frame(Kind.ADVERTISE, binding.encode()))
    assert Signed.read(seen).kind is Kind.ADVERT
    server = until(parties, Trip.SHARE, absent={Kind.ADVERTISE: frozenset({4})})
    request = changed(
        request_of(server, parties),
        ShareRequest,
        lambda share: replace(share, adverts=(*share.adverts, seen)),
    )
    refusal = refused(parties, request)
    assert "site-0004 advertised for another adapter_hash than this site" in refusal.reason


def test_it_leaves_the_clients_own_advert_out_or_changes_it(parties: Federation) -> None:
    server = until(parties, Trip.SHARE)
    request = request_of(server, parties)
    without = changed(request, ShareRequest, lambda share: replace(share, adverts=share.adverts[1:]))
    refusal = refused(parties, without)
    assert refusal.code == "FT907"
    assert "own advert is missing or was changed" in refusal.reason


def test_it_repeats_a_member_or_a_key(parties: Federation) -> None:
    server = until(parties, Trip.SHARE)
    request = request_of(server, parties)
    twice = changed(
        request, ShareRequest, lambda share: replace(share, adverts=(*share.adverts[:3], *share.adverts[2:]))
    )
    assert "identities repeat" in refused(parties, twice).reason


def test_a_member_that_copies_the_victims_keys_is_refused(parties: Federation) -> None:
    server = until(parties, Trip.SHARE)
    own = Advert.decode(Signed.read(server.cohort.adverts[VICTIM]).body)

    def copy(raw: bytes) -> bytes:
        advert = replace(Advert.decode(Signed.read(raw).body), mask_key=own.mask_key)
        return Signed.make(parties.identities[2], Kind.ADVERT, advert.encode())

    refusal = refused(parties, replace_advert(request_of(server, parties), 2, copy))
    assert "a public key occurs twice" in refusal.reason


def test_it_builds_a_cohort_below_k_min(tmp_path: Path) -> None:
    strict = federation(tmp_path, 5, policy=Policy(k_min=5))
    server = until(strict, Trip.SHARE)
    request = changed(
        request_of(server, strict), ShareRequest, lambda share: replace(share, adverts=share.adverts[:4])
    )
    refusal = refused(strict, request)
    assert refusal.code == "FT908"
    assert "4 members in U1, at least 5 are needed" in refusal.reason


def test_it_enrols_four_invented_members_around_one_victim(tmp_path: Path) -> None:
    """The victim's roster is pinned: adverts of members that it never accepted are strangers'."""
    parties = federation(tmp_path, 5)
    invented = [Identity.generate() for _ in range(4)]
    entries = tuple(
        sign_entry(key, federation="test federation", site=f"clinic-{number}")
        for number, key in enumerate(invented)
    )
    crafted = parties.roster.following((parties.roster.entries[VICTIM], *entries))
    # Told honestly, the roster's hash gives it away in R0 ...
    binding = replace(parties.rules().binding, roster_hash=crafted.hash)
    assert "another roster_hash" in refused(parties, frame(Kind.ADVERTISE, binding.encode())).reason
    # ... and hidden behind the pinned roster's hash, the adverts do in R1.
    server = until(parties, Trip.SHARE)
    own = server.cohort.adverts[VICTIM]
    template = Advert.decode(Signed.read(own).body)
    made = [
        Signed.make(
            key,
            Kind.ADVERT,
            replace(
                template,
                mask_key=public_key(new_private_key(PRIME)),
                seal_key=public_key(new_private_key(PRIME)),
            ).encode(),
        )
        for key in invented
    ]
    adverts = tuple(sorted([own, *made], key=lambda raw: Signed.read(raw).sender))
    request = changed(
        request_of(server, parties), ShareRequest, lambda share: replace(share, adverts=adverts)
    )
    refusal = refused(parties, request)
    assert refusal.code == "FT905"
    assert refusal.reason.count("is not in the roster that this site pinned") == 4


def test_it_rolls_the_roster_back(tmp_path: Path) -> None:
    parties = federation(tmp_path, 5)
    older = parties.roster
    newer = older.following(older.entries)
    parties.roster = newer
    parties.clients = [parties.client(index) for index in range(5)]
    parties.hold()
    binding = replace(parties.rules().binding, roster_hash=older.hash)
    assert "another roster_hash" in refused(parties, frame(Kind.ADVERTISE, binding.encode())).reason


# Trip R2


def test_it_lowers_the_threshold_by_claiming_a_small_u2(parties: Federation) -> None:
    server = until(parties, Trip.MASK)
    request = changed(
        request_of(server, parties), MaskRequest, lambda mask: replace(mask, u2=frozenset({0, 1, 2}))
    )
    refusal = refused(parties, request)
    assert refusal.code == "FT908"
    assert "3 members in U2, at least 4 are needed" in refusal.reason


def test_it_leaves_the_client_out_of_u2(parties: Federation) -> None:
    server = until(parties, Trip.MASK)
    request = changed(
        request_of(server, parties), MaskRequest, lambda mask: replace(mask, u2=frozenset({1, 2, 3, 4}))
    )
    assert "this site is not in U2" in refused(parties, request).reason


def test_it_claims_another_cohort_size(parties: Federation) -> None:
    server = until(parties, Trip.MASK)
    request = changed(request_of(server, parties), MaskRequest, lambda mask: replace(mask, members=6))
    assert "U2 is of a cohort of 6, not 5" in refused(parties, request).reason


def test_it_withholds_or_swaps_sealed_shares(parties: Federation) -> None:
    server = until(parties, Trip.MASK)
    request = request_of(server, parties)
    short = changed(request, MaskRequest, lambda mask: replace(mask, records=mask.records[176:]))
    assert "3 sealed shares came, U2 has 4 neighbours" in refused(parties, short).reason


def test_it_passes_one_members_shares_off_as_anothers(parties: Federation) -> None:
    server = until(parties, Trip.MASK)

    def swap(mask: MaskRequest) -> MaskRequest:
        first, second, rest = mask.records[:176], mask.records[176:352], mask.records[352:]
        return replace(mask, records=second + first + rest)

    refusal = refused(parties, changed(request_of(server, parties), MaskRequest, swap))
    assert refusal.code == "FT910"
    assert refusal.accused == (1, 2)


@pytest.mark.parametrize("at", [0, 40, 64, 100, 175])
def test_it_flips_a_bit_of_a_sealed_share_or_its_commitment(parties: Federation, at: int) -> None:
    server = until(parties, Trip.MASK)

    def flip(mask: MaskRequest) -> MaskRequest:
        records = bytearray(mask.records)
        records[176 + at] ^= 1
        return replace(mask, records=bytes(records))

    refusal = refused(parties, changed(request_of(server, parties), MaskRequest, flip))
    assert refusal.code == "FT910"
    assert refusal.accused == (2,)
    assert parties.clients[VICTIM].state == "Held"


def test_it_truncates_a_ciphertext(parties: Federation) -> None:
    server = until(parties, Trip.MASK)
    request = changed(
        request_of(server, parties), MaskRequest, lambda mask: replace(mask, records=mask.records[:-1])
    )
    assert refused(parties, request).code == "FT901"


# Trip R3


@pytest.mark.parametrize(
    ("u3", "code", "reason"),
    [
        ({1, 2, 3, 4}, "FT909", "this site is not in U3"),
        ({0, 1, 2}, "FT908", "3 members in U3, at least 4 are needed"),
        ({0, 1, 2, 3, 4}, "FT909", "U3 names [4], who are not in U2"),
    ],
    ids=["self-missing", "too-few", "not-in-u2"],
)
def test_it_proposes_a_u3_that_cannot_be(parties: Federation, u3: set[int], code: str, reason: str) -> None:
    server = until(parties, Trip.CONFIRM, absent={Kind.SHARE: frozenset({4})})
    request = changed(
        request_of(server, parties), ConfirmRequest, lambda confirm: replace(confirm, u3=frozenset(u3))
    )
    refusal = refused(parties, request)
    assert refusal.code == code
    assert reason in refusal.reason
    assert not (parties.folder / "0.spent").exists() or not (parties.folder / "0.spent").read_bytes()


def test_above_128_members_it_pretends_that_all_neighbours_of_one_dropped_out(tmp_path: Path) -> None:
    parties = federation(tmp_path, 200)
    server = until(parties, Trip.CONFIRM)
    shape = server.cohort.graph.shape
    at = server.cohort.graph.circle.index(VICTIM)
    around = {server.cohort.graph.circle[(at + step) % 200] for step in range(1, shape.half_degree + 1)}
    request = changed(
        request_of(server, parties),
        ConfirmRequest,
        lambda confirm: replace(confirm, u3=confirm.u3 - around),
    )
    refusal = refused(parties, request)
    assert "the dropouts would cut the graph" in refusal.reason


def test_with_groups_it_splits_one(tmp_path: Path) -> None:
    parties = federation(tmp_path, 8, groups=("north", "north", "", "", "", "", "", ""))
    server = until(parties, Trip.CONFIRM)
    request = changed(
        request_of(server, parties, 3), ConfirmRequest, lambda confirm: replace(confirm, u3=confirm.u3 - {0})
    )
    assert "group north is in U3 with 1 of 2" in refused(parties, request, 3).reason


# Trip R4


def without_member_1(confirm: ConfirmRequest) -> ConfirmRequest:
    statements = (confirm.statements[0], *confirm.statements[2:])
    return replace(confirm, u3=confirm.u3 - {1}, statements=statements)


def test_it_sends_different_u3_to_different_clients(parties: Federation) -> None:
    """The same peer dead to one client and alive to another: the classic attack on the double mask."""
    server = until(parties, Trip.CONFIRM)
    signatures = []
    for index in range(5):
        request = request_of(server, parties, index)
        if index >= 2:  # for these, member 1 has dropped out
            request = changed(request, ConfirmRequest, without_member_1)
        signed = Signed.read(parties.clients[index].handle(request))
        if signed.kind is Kind.CONFIRMED:
            signatures.append((index, signed.signature))
    everyone = UnmaskRequest(transcript=server.cohort.transcript, signatures=tuple(signatures))
    for index in range(5):
        refusal = refused(parties, frame(Kind.UNMASK, everyone.encode()), index)
        assert refusal.code == "FT911"
    assert {client.state for client in parties.clients} == {"Idle"}


def test_it_sends_different_u2_to_different_clients(parties: Federation) -> None:
    """Some mask for a U2 without member 4; the others see it in what those signed with their vectors."""
    server = until(parties, Trip.MASK)
    statements = {}
    for index in range(4):
        request = request_of(server, parties, index)
        if index in (0, 1):  # for these two, member 4 never shared

            def without(mask: MaskRequest) -> MaskRequest:
                return replace(mask, u2=mask.u2 - {4}, records=mask.records[:-176])

            request = changed(request, MaskRequest, without)
        statements[index] = MaskedAnswer.decode(
            Signed.read(parties.clients[index].handle(request)).body
        ).statement
    confirm = ConfirmRequest(
        transcript=server.cohort.transcript,
        members=5,
        u3=frozenset(range(4)),
        statements=tuple(statements[index] for index in range(4)),
    )
    for index in range(4):
        refusal = refused(parties, frame(Kind.CONFIRM, confirm.encode()), index)
        assert refusal.code == "FT909"
        assert "did not mask for the U2 that this site saw" in refusal.reason


def test_it_leaves_out_or_forges_what_a_member_signed_with_its_vector(parties: Federation) -> None:
    server = until(parties, Trip.CONFIRM)
    request = request_of(server, parties)
    fewer = changed(request, ConfirmRequest, lambda item: replace(item, statements=item.statements[1:]))
    assert "4 statements came for 5 members of U3" in refused(parties, fewer).reason
    swapped = changed(
        request_of(server, parties, 1),
        ConfirmRequest,
        lambda item: replace(item, statements=item.statements[::-1]),
    )
    assert "did not mask for the U2" in refused(parties, swapped, 1).reason


def test_above_128_members_it_hides_a_victims_honest_neighbours_from_it_alone(tmp_path: Path) -> None:
    """The victim would mask with nobody honest, the others would rebuild its b: they refuse to confirm."""
    parties = federation(tmp_path, 150)
    server = until(parties, Trip.MASK)
    hidden = set(server.cohort.neighbours[VICTIM][:40])

    def without(mask: MaskRequest) -> MaskRequest:
        kept = b"".join(
            mask.records[176 * at : 176 * at + 176]
            for at, peer in enumerate(server.cohort.neighbours[VICTIM])
            if peer not in hidden
        )
        return replace(mask, u2=mask.u2 - hidden, records=kept)

    for identity, request in server.requests().items():
        index = parties.index(identity)
        crafted = changed(request, MaskRequest, without) if index == VICTIM else request
        reply = parties.clients[index].handle(crafted)
        body = Signed.read(reply).body
        server.collected.masked[index] = MaskedAnswer.decode(body).statement
    server.advance()
    around = server.cohort.neighbours[VICTIM]
    for peer in around:
        refusal = refused(parties, request_of(server, parties, peer), peer)
        assert f"member {VICTIM} did not mask for the U2 that this site saw" in refusal.reason


def unmask_request(server, parties: Federation, change: Callable) -> bytes:
    return changed(request_of(server, parties), UnmaskRequest, change)


def test_it_counts_signers_outside_u3(parties: Federation) -> None:
    server = until(parties, Trip.UNMASK, absent={Kind.MASK: frozenset({4})})
    outsider = (4, bytes(64))
    request = unmask_request(
        server, parties, lambda unmask: replace(unmask, signatures=(*unmask.signatures, outsider))
    )
    refusal = refused(parties, request)
    assert refusal.code == "FT911"
    assert "signers [4] are not in U3" in refusal.reason


def test_it_counts_one_signer_twice_or_brings_too_few(parties: Federation) -> None:
    server = until(parties, Trip.UNMASK)
    one = server.collected.confirmations[1]
    request = unmask_request(
        server, parties, lambda unmask: replace(unmask, signatures=((1, one), (1, one), (1, one), (1, one)))
    )
    assert "signers repeat" in refused(parties, request).reason
    fewer = changed(
        request_of(server, parties, 1),
        UnmaskRequest,
        lambda unmask: replace(unmask, signatures=unmask.signatures[:3]),
    )
    assert (
        "3 members confirmed the sets that this site saw, 4 are needed" in refused(parties, fewer, 1).reason
    )


def test_it_forges_signatures(parties: Federation) -> None:
    server = until(parties, Trip.UNMASK)

    def forge(unmask: UnmaskRequest) -> UnmaskRequest:
        rotated = [signature for _, signature in unmask.signatures]
        rotated.append(rotated.pop(0))
        return replace(unmask, signatures=tuple(enumerate(rotated)))

    assert "0 members confirmed" in refused(parties, unmask_request(server, parties, forge)).reason


def test_it_asks_to_unmask_a_second_time_for_other_signatures(parties: Federation) -> None:
    server = until(parties, Trip.UNMASK)
    request = request_of(server, parties)
    first = parties.clients[VICTIM].handle(request)
    assert Signed.read(first).kind is Kind.UNMASKED
    assert parties.clients[VICTIM].handle(request) == first, "the same request gets the cached answer"
    other = unmask_request(server, parties, lambda unmask: replace(unmask, signatures=unmask.signatures[1:]))
    refusal = refused(parties, other)
    assert refusal.code == "FT913"


# Differencing


def test_it_claims_failure_after_the_confirmation_and_retries_without_one_client(parties: Federation) -> None:
    until(parties, Trip.UNMASK)
    for index in range(1, 5):
        refusal = refused(parties, request_of(parties.attempt(2), parties, index), index)
        assert refusal.code == "FT902"
        assert "its update is spent" in refusal.reason


def test_the_same_after_a_restart_of_the_clients(parties: Federation) -> None:
    until(parties, Trip.UNMASK)
    for index in range(1, 5):
        restarted = parties.client(index)
        with pytest.raises(SecureAggregationError, match=r"FT912.*opened in run run-1, round 1, attempt 1"):
            restarted.hold(parties.updates[index], parties.encoding, parties.facts[index])


def test_the_same_in_a_new_run(parties: Federation) -> None:
    until(parties, Trip.UNMASK)
    for index in range(1, 5):
        again = replace(parties.facts[index], run="run-2", round=7)
        with pytest.raises(SecureAggregationError, match="FT912"):
            parties.client(index).hold(parties.updates[index], parties.encoding, again)


def test_two_processes_of_one_site_confirm_once(parties: Federation) -> None:
    """A second executor that trained for another run in parallel held its update before the first signed."""
    twin = parties.client(VICTIM)
    twin.hold(parties.updates[VICTIM], parties.encoding, parties.facts[VICTIM])
    until(parties, Trip.UNMASK)
    refusal = Signed.read(twin.handle(request_of(parties.attempt(2), parties)))
    assert Refusal.decode(refusal.body).code == "FT912"


def test_only_the_sites_operator_lets_it_be_opened_again(parties: Federation) -> None:
    until(parties, Trip.UNMASK)
    journal = SpentJournal(parties.folder / "0.spent")
    journal.release(parties.facts[0].origin, operator="Dr. A", reason="the coordinator lost its disk")
    parties.client(0).hold(parties.updates[0], parties.encoding, parties.facts[0])


# Order and time


@pytest.mark.parametrize("trip", [Trip.MASK, Trip.CONFIRM, Trip.UNMASK], ids=lambda trip: trip.name)
def test_it_asks_out_of_order(tmp_path: Path, trip: Trip) -> None:
    parties = federation(tmp_path, 4)
    server = until(parties, trip)
    request = request_of(server, parties)
    (tmp_path / "fresh").mkdir()
    fresh = federation(tmp_path / "fresh", 4)
    refusal = refused(fresh, request)
    assert refusal.code == "FT902"
    assert fresh.clients[VICTIM].state == "Held", "a message in the wrong state changes nothing"


def test_it_waits_until_the_attempt_has_expired(parties: Federation) -> None:
    server = until(parties, Trip.MASK)
    parties.now[0] += parties.policy.attempt_seconds
    assert refused(parties, request_of(server, parties)).code == "FT904"
    assert parties.clients[VICTIM].state == "Held"
    parties.now[0] += parties.policy.hold_seconds
    assert refused(parties, request_of(parties.attempt(2), parties)).code == "FT904"
    assert parties.clients[VICTIM].state == "Idle"


def test_it_waits_after_the_confirmation_until_the_shares_are_gone(parties: Federation) -> None:
    server = until(parties, Trip.UNMASK)
    parties.now[0] += parties.policy.attempt_seconds
    assert refused(parties, request_of(server, parties)).code == "FT904"
    assert parties.clients[VICTIM].state == "Idle"
