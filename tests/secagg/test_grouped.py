"""Sums over groups, carried together: each is the sum of its own members, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from support.secure_sum import Federation, federation

from fedtune.errors import SecureAggregationError
from fedtune.secagg.grouped import Ended, require_groups, together
from fedtune.secagg.messages import Kind, Signed, open_frame
from fedtune.secagg.problems import refusal
from fedtune.secagg.rounds import RoundOutcome, Send, round_trips

GROUPS = ("east",) * 3 + ("south",) * 4 + ("west",) * 3
MEMBERS = {name: [n for n, group in enumerate(GROUPS) if group == name] for name in ("east", "south", "west")}


@pytest.fixture
def parties(tmp_path: Path) -> Federation:
    return federation(tmp_path, len(GROUPS), groups=GROUPS)


def run(parties: Federation, send: Send, *, attempts: int = 1) -> dict[str, Ended]:
    trips = {
        name: round_trips(
            parties.rules(),
            invited=frozenset(parties.identities[number].public for number in members),
            attempts=attempts,
        )
        for name, members in MEMBERS.items()
    }
    return together(trips, send)


def assert_sum(parties: Federation, ended: Ended, name: str) -> None:
    assert isinstance(ended, RoundOutcome)
    vector, lanes = parties.plain_sum(MEMBERS[name])
    assert np.array_equal(ended.total.vector, vector)
    assert np.array_equal(ended.total.lanes, lanes)
    assert {parties.index(identity) for identity in ended.total.cohort} == set(MEMBERS[name])


def test_each_group_gives_the_sum_of_its_own(parties: Federation) -> None:
    kinds = []

    def send(requests: Mapping[bytes, bytes]) -> Iterable[bytes]:
        kinds.append({open_frame(frame)[0] for frame in requests.values()})
        assert len(requests) == len(GROUPS), "all groups travel together"
        return parties.send()(requests)

    for name, ended in run(parties, send).items():
        assert_sum(parties, ended, name)
    assert kinds == [{Kind.ADVERTISE}, {Kind.SHARE}, {Kind.MASK}, {Kind.CONFIRM}, {Kind.UNMASK}]


@pytest.mark.parametrize("trip", [Kind.ADVERTISE, Kind.SHARE, Kind.MASK])
def test_a_group_that_lacks_a_member_opens_nothing_and_the_others_go_on(
    parties: Federation, trip: Kind
) -> None:
    ended = run(parties, parties.send(absent={trip: frozenset({4})}))
    assert isinstance(ended["south"], SecureAggregationError)
    assert ended["south"].problems[0].code == "FT920"
    for name in ("east", "west"):
        assert_sum(parties, ended[name], name)
    assert not {"Confirmed", "Opened"} & {parties.clients[number].state for number in MEMBERS["south"]}


def test_a_group_that_tries_again_catches_up(parties: Federation) -> None:
    lost = [True]

    def send(requests: Mapping[bytes, bytes]) -> Iterable[bytes]:
        answers = list(parties.send()(requests))
        if lost[0] and open_frame(next(iter(requests.values())))[0] is Kind.SHARE:
            lost[0] = False
            return answers[1:]
        return answers

    ended = run(parties, send, attempts=2)
    for name in MEMBERS:
        assert_sum(parties, ended[name], name)
    assert sorted(each.attempts for each in ended.values() if isinstance(each, RoundOutcome)) == [1, 1, 2]


def test_who_pretends_to_be_another_stops_nobody(parties: Federation) -> None:
    victim = parties.identities[0].public

    def send(requests: Mapping[bytes, bytes]) -> Iterable[bytes]:
        answers = list(parties.send()(requests))
        own = next(answer for answer in answers if Signed.read(answer).sender == victim)
        # What member 9 of another group sends first, in the victim's name: its signature cannot be right.
        return [own[:-1] + bytes([own[-1] ^ 1]), b"noise", *answers]

    for name, ended in run(parties, send).items():
        assert_sum(parties, ended, name)


def test_a_burnt_group_is_named_and_the_others_go_on(parties: Federation) -> None:
    ended = run(parties, parties.send(absent={Kind.CONFIRM: frozenset(MEMBERS["south"])}))
    assert isinstance(ended["south"], SecureAggregationError)
    assert ended["south"].problems[0].code == "FT921"
    assert_sum(parties, ended["east"], "east")


def test_a_full_disk_is_no_fault_of_a_group(parties: Federation) -> None:
    def send(_: Mapping[bytes, bytes]) -> Iterable[bytes]:
        yield from ()
        raise refusal("FT926", "the journal cannot be written", where="disk")

    with pytest.raises(SecureAggregationError, match="FT926"):
        run(parties, send)


def test_a_run_has_the_groups_of_its_roster(parties: Federation) -> None:
    require_groups(parties.roster, 3)
    require_groups(parties.roster, 1)
    with pytest.raises(SecureAggregationError, match=r"FT931: secagg\.groups is 4, .* have 3 groups"):
        require_groups(parties.roster, 4)
