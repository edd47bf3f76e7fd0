"""How often a peer may do something, against exact arithmetic; the tables stay as small as they promise."""

from __future__ import annotations

import logging
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.coordinator.gate.peers import Crowd, PeerLog, shown
from fedtune.coordinator.gate.throttle import Throttle, peer_group


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


# Quarters are exact in binary: the oracle below and the code must agree to the last request.
quarters = st.integers(0, 40).map(lambda number: number / 4)


@given(st.integers(1, 5), st.sampled_from([0.25, 0.5, 1.0, 4.0]), st.lists(quarters, max_size=60))
def test_a_bucket_gives_what_exact_arithmetic_gives(burst: int, rate: float, pauses: list[float]) -> None:
    clock = Clock()
    throttle = Throttle(rate=rate, burst=burst, peers=1, clock=clock)
    tokens, refused = Fraction(burst), 0
    for pause in pauses:
        clock.now += pause
        tokens = min(Fraction(burst), tokens + Fraction(pause) * Fraction(rate))
        allowed = tokens >= 1
        tokens -= allowed
        refused += not allowed
        assert throttle.take("a") == (allowed, refused)
        refused *= not allowed


def test_one_peer_does_not_take_what_is_anothers() -> None:
    throttle = Throttle(rate=1, burst=1, peers=8, clock=Clock())
    assert throttle.take("a").allowed
    assert not throttle.take("a").allowed
    assert throttle.take("b").allowed


@given(st.lists(st.integers(0, 99).map(str), max_size=200))
def test_the_table_is_bounded_and_forgets_the_peer_not_seen_for_longest(peers: list[str]) -> None:
    throttle = Throttle(rate=1, burst=1, peers=5, clock=Clock())
    recent: list[str] = []
    for peer in peers:
        assert throttle.take(peer).allowed == (peer not in recent)
        recent = [*(each for each in recent if each != peer), peer][-5:]
        assert len(throttle) == len(recent)


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:ffff:ffff:ffff", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_an_ipv6_network_is_one_peer(host: str, group: str) -> None:
    assert peer_group(host) == group


@given(st.binary(max_size=400) | st.text(max_size=400))
def test_what_a_peer_sent_is_one_short_printable_line(raw: bytes | str) -> None:
    text = shown(raw)
    assert text.isascii()
    assert text == "" or text.isprintable()
    assert len(text) <= 123


def test_a_flood_is_counted_and_not_written(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    log = PeerLog(Throttle(rate=1, burst=2, peers=8, clock=clock))
    with caplog.at_level(logging.WARNING, "fedtune.coordinator.gate"):
        for _ in range(10):
            log.say("192.0.2.7", "knocked")
        log.say("192.0.2.8", "knocked")
        clock.now = 1.0
        log.say("192.0.2.7", "knocked")
    assert caplog.messages == [
        "192.0.2.7: knocked",
        "192.0.2.7: knocked",
        "192.0.2.8: knocked",
        "192.0.2.7: knocked (and 8 lines about it that are not written)",
    ]


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), max_size=80))
def test_connections_are_counted_over_all_and_for_each_peer(steps: list[tuple[bool, str]]) -> None:
    crowd = Crowd(most=4, most_per_peer=2)
    there: list[tuple[str, bool]] = []
    for comes, peer in steps:
        served = [group for group, allowed in there if allowed]
        if comes:
            allowed = crowd.enter(peer)
            assert allowed == (len(served) < 4 and served.count(peer) < 2)
            there.append((peer, allowed))
        elif there:
            group, was = there.pop(0)
            crowd.leave(group, served=was)
        assert crowd.full == (sum(not allowed for _, allowed in there) > 4)
