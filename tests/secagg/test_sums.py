"""The opened sum is the plain sum of those who stayed, with dropouts at every trip; one more aborts."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from support.secure_sum import federation

from fedtune.errors import SecureAggregationError
from fedtune.secagg.collected import Trip
from fedtune.secagg.messages import Kind
from fedtune.secagg.policy import Policy
from fedtune.secagg.rounding import decode_mean
from fedtune.secagg.rounds import finish_attempt, secure_round
from fedtune.secagg.thresholds import tolerated_dropouts

TRIPS = [Kind.SHARE, Kind.MASK, Kind.CONFIRM, Kind.UNMASK]
SIZES = [3, 5, 10, 100]


def assert_plain_sum(parties, attempt, members) -> None:
    vector, lanes = parties.plain_sum(members)
    assert attempt.trip is Trip.DONE
    np.testing.assert_array_equal(attempt.result.vector, vector)
    np.testing.assert_array_equal(attempt.result.lanes, lanes)
    assert set(attempt.result.cohort) == {parties.identities[index].public for index in members}


def in_the_sum(trip: Kind, count: int, gone: frozenset[int]) -> set[int]:
    """Whoever sent a masked vector is in the sum, even if it disappears afterwards."""
    return set(range(count)) - (gone if trip in (Kind.SHARE, Kind.MASK) else frozenset())


@pytest.mark.parametrize("count", SIZES)
def test_with_everyone_there(tmp_path: Path, count: int) -> None:
    parties = federation(tmp_path, count)
    assert_plain_sum(parties, parties.run(), range(count))


@pytest.mark.parametrize("trip", TRIPS, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("count", SIZES)
def test_with_as_many_dropouts_as_are_tolerated(tmp_path: Path, count: int, trip: Kind) -> None:
    parties = federation(tmp_path, count)
    gone = frozenset(random.sample(range(count), tolerated_dropouts(count)))
    attempt = parties.run(absent={trip: gone})
    assert_plain_sum(parties, attempt, in_the_sum(trip, count, gone))


@pytest.mark.parametrize("trip", TRIPS, ids=lambda kind: kind.name.lower())
@pytest.mark.parametrize("count", SIZES)
def test_one_more_aborts_and_opens_nothing(tmp_path: Path, count: int, trip: Kind) -> None:
    parties = federation(tmp_path, count)
    gone = frozenset(random.sample(range(count), tolerated_dropouts(count) + 1))
    attempt = parties.attempt()
    burnt = trip in (Kind.CONFIRM, Kind.UNMASK)
    with pytest.raises(SecureAggregationError, match="FT921" if burnt else "FT920"):
        finish_attempt(attempt, parties.send(absent={trip: gone}))
    assert attempt.trip is (Trip.BURNT if burnt else Trip.FAILED)
    with pytest.raises(SecureAggregationError, match="there is no sum"):
        _ = attempt.result


def test_dropouts_spread_over_all_trips(tmp_path: Path) -> None:
    parties = federation(tmp_path, 100)
    gone = {trip: frozenset(range(8 * n, 8 * n + 8)) for n, trip in enumerate(TRIPS)}
    attempt = parties.run(absent=gone)
    assert_plain_sum(parties, attempt, range(16, 100))


def test_a_sparse_cohort_of_200_with_its_share_of_dropouts_over_all_trips(tmp_path: Path) -> None:
    parties = federation(tmp_path, 200)
    order = random.sample(range(200), 20)
    gone = {trip: frozenset(order[5 * n : 5 * n + 5]) for n, trip in enumerate(TRIPS)}
    attempt = parties.run(absent=gone)
    assert not attempt.cohort.graph.shape.complete
    assert_plain_sum(parties, attempt, set(range(200)) - gone[Kind.SHARE] - gone[Kind.MASK])


def test_a_sparse_cohort_that_loses_a_third_aborts_before_anything_is_confirmed(tmp_path: Path) -> None:
    parties = federation(tmp_path, 200)
    attempt = parties.attempt()
    gone = frozenset(random.sample(range(200), 67))
    with pytest.raises(SecureAggregationError, match="FT920"):
        finish_attempt(attempt, parties.send(absent={Kind.MASK: gone}))
    assert {client.state for client in parties.clients} == {"Masked", "Shared"}


@pytest.mark.parametrize("ring_bits", [16, 64])
@pytest.mark.parametrize("prg", ["aes256ctr", "chacha20"])
def test_in_every_ring_and_under_both_ciphers(tmp_path: Path, ring_bits: int, prg) -> None:
    parties = federation(tmp_path, 5, ring_bits=ring_bits, policy=Policy(k_min=3, prg=prg), size=41)
    assert_plain_sum(parties, parties.run(absent={Kind.MASK: frozenset({2})}), {0, 1, 3, 4})


def test_declared_weights_give_the_weighted_mean_and_are_checked(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4, weights=(1, 2, 4, 8))
    total = parties.run().result
    mean = decode_mean(total.vector, total.lanes, parties.encoding)
    assert (mean.count, mean.total_weight) == (4, 15)


def test_an_attempt_that_failed_is_retried_with_the_same_updates_and_fresh_keys(tmp_path: Path) -> None:
    parties = federation(tmp_path, 6)
    calls = []

    def flaky(requests):
        kind = next(iter(requests.values()))[5]
        calls.append(kind)
        answers = list(parties.send()(requests))
        # In the first attempt half of the masked vectors are lost on the way.
        return answers[:3] if kind == Kind.MASK and calls.count(Kind.MASK) == 1 else answers

    outcome = secure_round(parties.rules(), invited=parties.members, send=flaky, attempts=3)
    assert outcome.attempts == 2
    assert outcome.attempt.rules.binding.attempt == 2
    assert_plain_sum(parties, outcome.attempt, range(6))


def test_after_the_last_attempt_the_reasons_are_given(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4)
    with pytest.raises(SecureAggregationError, match=r"FT920.*\n.*\n.*\nFT908: 2 members in U1"):
        secure_round(
            parties.rules(),
            invited=parties.members,
            send=parties.send(absent={Kind.ADVERTISE: frozenset({0, 1})}),
            attempts=2,
        )


def test_groups_are_admitted_or_dropped_together(tmp_path: Path) -> None:
    groups = ("north", "north", "south", "south", "", "", "", "", "", "")
    parties = federation(tmp_path, 10, groups=groups)
    attempt = parties.run(absent={Kind.MASK: frozenset({0})})
    assert_plain_sum(parties, attempt, range(2, 10))


def test_a_client_restarted_in_mid_protocol_counts_as_dropped(tmp_path: Path) -> None:
    parties = federation(tmp_path, 5)

    def restart(kind, index, request):
        if kind is Kind.MASK and index == 3:
            parties.clients[3] = parties.client(3)
        return request

    attempt = parties.run(tamper=restart)
    assert_plain_sum(parties, attempt, {0, 1, 2, 4})
    (fault,) = attempt.collected.faults
    assert "refused with FT903: no state" in fault.problem.what


def test_no_secret_is_written_to_disk_or_shown(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4)
    secrets_seen: list[bytes] = []

    def look(kind, index, request):
        state = parties.clients[index]._state
        for name in ("mask_private", "seal_private", "b"):
            value = getattr(state, name, None)
            if value is not None:
                secrets_seen.append(value)
                assert value.hex() not in repr(state)
        return request

    parties.run(tamper=look)
    assert len(set(secrets_seen)) == 3 * 4
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(value in written or value.hex().encode() in written for value in secrets_seen)
    assert {client.state for client in parties.clients} == {"Opened"}
