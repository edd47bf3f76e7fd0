"""The roster: self-signed entries, a chain of versions, and who may change a site's mind."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.errors import SecureAggregationError
from fedtune.secagg.entry import apply_for_roster, parse_application
from fedtune.secagg.identity import Identity
from fedtune.secagg.pinning import PinnedRoster
from fedtune.secagg.roster import GENESIS, Roster, fingerprint, parse_roster, sign_entry, weight_bucket


@pytest.fixture(scope="module")
def keys() -> list[Identity]:
    return [Identity.generate() for _ in range(6)]


def entry(key: Identity, name: str, **more: object):
    return sign_entry(key, federation="f", site=name, **more)


@pytest.fixture(scope="module")
def first(keys) -> Roster:
    entries = tuple(entry(key, f"site-{n}") for n, key in enumerate(keys[:4]))
    return Roster(federation="f", version=1, previous=GENESIS, entries=entries)


def pinned(tmp_path, roster: Roster) -> PinnedRoster:
    pin = PinnedRoster(tmp_path / "roster.json")
    pin.accept_by_operator([roster], fingerprint(roster.hash))
    return pin


def test_a_roster_survives_its_file(first: Roster) -> None:
    again = parse_roster(first.to_json())
    assert again == first
    assert again.hash == first.hash


def test_the_hash_depends_on_entries_version_and_history_but_not_on_their_order(first, keys) -> None:
    shuffled = Roster(federation="f", version=1, previous=GENESIS, entries=first.entries[::-1])
    assert shuffled.hash == first.hash
    assert first.following(first.entries).hash != first.hash
    fewer = Roster(federation="f", version=1, previous=GENESIS, entries=first.entries[:3])
    assert fewer.hash != first.hash


def test_an_entry_that_its_site_did_not_sign_is_refused_by_name(first, keys) -> None:
    forged = replace(entry(keys[4], "victim"), weight=2)
    with pytest.raises(SecureAggregationError, match="victim did not sign its entry"):
        first.following((*first.entries, forged))
    foreign = sign_entry(keys[4], federation="another", site="stranger")
    with pytest.raises(SecureAggregationError, match="stranger did not sign its entry"):
        first.following((*first.entries, foreign))


def test_duplicates_and_exact_weights_are_refused_together(first, keys) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        first.following((*first.entries, entry(keys[4], "site-0"), entry(keys[5], "new", weight=37)))
    text = str(caught.value)
    assert text.count("site-0 is there more than once") == 2
    assert "new declares 37, weights are powers of two" in text


@pytest.mark.parametrize("name", ["", "x" * 129, "a\x1b[2Jb", "a\nb", "\u202eab"])
def test_names_that_could_hide_something_from_an_operator_are_refused(keys, name: str) -> None:
    with pytest.raises(SecureAggregationError, match="1 to 128 printable characters") as caught:
        Roster(federation="f", version=1, previous=GENESIS, entries=(entry(keys[0], name),))
    assert str(caught.value).replace("\n", "").isprintable()
    with pytest.raises(SecureAggregationError, match="the federation is"):
        Roster(federation=name, version=1, previous=GENESIS, entries=())


def test_weights_are_declared_in_buckets() -> None:
    assert [weight_bucket(count) for count in (0, 1, 2, 3, 37, 64)] == [1, 1, 2, 2, 32, 64]


def test_an_operator_pins_the_version_whose_fingerprint_was_confirmed(tmp_path, first) -> None:
    pin = PinnedRoster(tmp_path / "roster.json")
    with pytest.raises(SecureAggregationError, match="no roster has been accepted"):
        _ = pin.roster
    with pytest.raises(SecureAggregationError, match="the operator confirmed 'aaaa'"):
        pin.accept_by_operator([first], "aaaa")
    with pytest.raises(SecureAggregationError, match="the operator confirmed"):
        pin.accept_by_operator([first], "\udcff")
    pin.accept_by_operator([first], fingerprint(first.hash).upper().replace("-", " ") + "\n")
    assert PinnedRoster(tmp_path / "roster.json").roster == first


def test_a_pin_file_that_cannot_be_read_is_not_the_same_as_none(tmp_path) -> None:
    (tmp_path / "roster.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(SecureAggregationError, match=r"FT918.*cannot be read"):
        PinnedRoster(tmp_path / "roster.json")


def test_versions_never_go_back_skip_or_fork(tmp_path, first, keys) -> None:
    second = first.following((*first.entries, entry(keys[4], "site-4")))
    third = second.following(second.entries[:4])
    pin = pinned(tmp_path, first)
    with pytest.raises(SecureAggregationError, match="does not follow"):
        pin.accept_by_operator([third], fingerprint(third.hash))
    pin.accept_by_operator([second, third], fingerprint(third.hash))
    for older in (first, second, third):
        with pytest.raises(SecureAggregationError, match="versions never go back or fork"):
            pin.accept_by_operator([older], fingerprint(older.hash))
    fork = second.following(second.entries[1:])
    with pytest.raises(SecureAggregationError, match="never go back or fork"):
        pin.accept_by_operator([fork], fingerprint(fork.hash))
    assert pin.roster == third


def test_four_invented_members_vouch_for_nothing(tmp_path, first, keys) -> None:
    invented = [Identity.generate() for _ in range(4)]
    entries = (first.entries[0], *(entry(key, f"invented-{n}") for n, key in enumerate(invented)))
    crafted = first.following(entries).countersigned(*invented)
    pin = pinned(tmp_path, first)
    with pytest.raises(SecureAggregationError, match="0 countersignatures of pinned members, 3 are needed"):
        pin.accept_by_quorum([crafted])
    assert pin.roster == first


def test_a_quorum_of_pinned_members_can_move_a_site_on(tmp_path, first, keys) -> None:
    second = first.following((*first.entries, entry(keys[4], "site-4")))
    pin = pinned(tmp_path, first)
    with pytest.raises(SecureAggregationError, match="has 2 countersignatures"):
        pin.accept_by_quorum([second.countersigned(keys[0], keys[1])])
    with pytest.raises(SecureAggregationError, match="4 are needed"):
        pin.accept_by_quorum([second.countersigned(*keys[:3])], quorum=4)
    twice = second.countersigned(keys[0], keys[0], keys[1])
    with pytest.raises(SecureAggregationError, match="has 2 countersignatures"):
        pin.accept_by_quorum([twice])
    pin.accept_by_quorum([second.countersigned(*keys[:3])])
    assert pin.roster.version == 2


def test_each_version_of_a_chain_needs_the_quorum_of_the_one_before(tmp_path, first, keys) -> None:
    second = first.following((*first.entries, entry(keys[4], "site-4"))).countersigned(*keys[:3])
    third = second.following(second.entries[:4])
    pin = pinned(tmp_path, first)
    with pytest.raises(SecureAggregationError, match="version 3 has 0 countersignatures"):
        pin.accept_by_quorum([second, third])
    assert pin.roster == first


def test_a_countersignature_of_one_version_does_not_serve_another(tmp_path, first, keys) -> None:
    second = first.following(first.entries[:3]).countersigned(*keys[:3])
    other = replace(first.following(first.entries[1:]), countersignatures=second.countersignatures)
    with pytest.raises(SecureAggregationError, match="0 countersignatures"):
        pinned(tmp_path, first).accept_by_quorum([other])


def test_groups_are_read_off_the_entries(keys) -> None:
    entries = (entry(keys[0], "a", group="north"), entry(keys[1], "b", group="north"), entry(keys[2], "c"))
    roster = Roster(federation="f", version=1, previous=GENESIS, entries=entries)
    assert roster.groups == {"north": frozenset({keys[0].public, keys[1].public})}


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"}, {"version": 0}, {"version": True}, {"version": "1"}, {"previous": "zz"},
        {"previous": "AB" * 32}, {"entries": {}}, {"entries": [{}]}, {"extra": 1}, {"federation": "\ud800"},
    ],
)  # fmt: skip
def test_a_roster_file_with_anything_else_in_it_is_refused(first: Roster, change: dict) -> None:
    raw = json.loads(first.to_json()) | change
    with pytest.raises(SecureAggregationError, match="FT918"):
        parse_roster(json.dumps(raw))


def test_a_key_that_occurs_twice_is_refused(first: Roster) -> None:
    with pytest.raises(SecureAggregationError, match="a key occurs twice"):
        parse_roster(first.to_json().replace('"version"', '"version": 7, "version"', 1))


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_arbitrary_roster_files_give_ft918_or_nothing(data) -> None:
    with pytest.raises(SecureAggregationError, match="FT918"):
        parse_roster(data)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_roster_files_give_ft918_or_the_same_roster(first: Roster, data) -> None:
    text = bytearray(first.to_json().encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    try:
        assert parse_roster(bytes(text)).hash == first.hash
    except SecureAggregationError as error:
        assert {item.code for item in error.problems} == {"FT918"}  # noqa: PT017


def test_an_application_survives_its_file(keys) -> None:
    applied = apply_for_roster(keys[0], federation="f", site="north ward", weight=4, group="north")
    assert parse_application(applied.to_json()) == applied
    assert parse_application(applied.to_json()).entry == entry(keys[0], "north ward", weight=4, group="north")


def test_an_impossible_application_is_refused_with_all_its_flaws_before_it_is_signed(keys) -> None:
    with pytest.raises(SecureAggregationError) as caught:
        apply_for_roster(keys[0], federation="", site="\udcff", weight=37, group="g" * 129)
    assert [item.code for item in caught.value.problems] == ["FT929"] * 4


@pytest.mark.parametrize(
    "change",
    [
        {"format": "fedtune-roster/1"}, {"federation": "another"}, {"site": "other"}, {"weight": 2},
        {"weight": 3}, {"weight": True}, {"weight": 2**64}, {"group": None}, {"identity": "00" * 32},
        {"signature": "AB" * 64}, {"extra": 1}, {"site": "\ud800"},
    ],
)  # fmt: skip
def test_an_application_with_anything_else_in_it_is_refused(keys, change: dict) -> None:
    raw = json.loads(apply_for_roster(keys[0], federation="f", site="s").to_json()) | change
    with pytest.raises(SecureAggregationError) as caught:
        parse_application(json.dumps(raw))
    assert {item.code for item in caught.value.problems} == {"FT929"}


@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=200), st.text(max_size=200)))
def test_arbitrary_applications_give_ft929_or_nothing(data) -> None:
    with pytest.raises(SecureAggregationError, match="FT929"):
        parse_application(data)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_applications_give_ft929_or_the_same_application(keys, data) -> None:
    applied = apply_for_roster(keys[0], federation="f", site="s", weight=8, group="g")
    text = bytearray(applied.to_json().encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] ^= data.draw(st.integers(1, 255))
    try:
        assert parse_application(bytes(text)) == applied
    except SecureAggregationError as error:
        assert {item.code for item in error.problems} == {"FT929"}  # noqa: PT017


def test_json_that_is_nested_too_deeply_is_refused() -> None:
    with pytest.raises(SecureAggregationError, match=r"FT929.*nested too deeply"):
        parse_application("[" * 100_000)
