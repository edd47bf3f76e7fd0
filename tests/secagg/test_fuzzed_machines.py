"""Damaged messages in every state: a client refuses, signed and with a code; a server takes no harm."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.secure_sum import federation

from fedtune.secagg.collected import Trip
from fedtune.secagg.messages import Kind, Refusal, Signed

TRIPS = [Trip.ADVERTISE, Trip.SHARE, Trip.MASK, Trip.CONFIRM, Trip.UNMASK]
HARMLESS = {
    Trip.ADVERTISE: range(27, 31),  # the number of the attempt: another one is as good
    Trip.SHARE: range(0),
    Trip.MASK: range(0),
    Trip.CONFIRM: range(55, 119),  # the receiver's own statement, which it does not need to be told
    Trip.UNMASK: range(42, 10_000),  # one signature more than the T that are needed
}
"""Bytes of a request for member 0 of four whose change a client may answer."""

fuzzed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def damaged(data: st.DataObject, message: bytes) -> bytes:
    changed = bytearray(message)
    at = data.draw(st.integers(0, len(changed) - 1))
    match data.draw(st.sampled_from(["flip", "cut", "double", "insert"])):
        case "flip":
            changed[at] ^= data.draw(st.integers(1, 255))
        case "cut":
            del changed[at:]
        case "double":
            changed[at:at] = changed[at : at + 64]
        case _:
            changed[at:at] = b"\xff" * 8
    return bytes(changed)


@pytest.mark.parametrize("trip", TRIPS, ids=lambda trip: trip.name.lower())
@fuzzed
@given(data=st.data())
def test_a_client_refuses_a_damaged_request(tmp_path_factory, trip: Trip, data) -> None:
    parties = federation(tmp_path_factory.mktemp("fuzz"), 4)
    server = parties.attempt()
    while server.trip is not trip:
        for reply in parties.send()(server.requests()):
            server.receive(reply)
        server.advance()
    request = server.requests()[parties.identities[0].public]
    crafted = damaged(data, request)
    reply = Signed.read(parties.clients[0].handle(crafted))
    assert reply.verified()
    if reply.kind is Kind.REFUSED:
        assert re.fullmatch(r"FT9\d\d", Refusal.decode(reply.body).code)
    elif crafted != request:
        assert len(crafted) == len(request)
        at = next(at for at in range(len(request)) if crafted[at] != request[at])
        assert at in HARMLESS[trip]


@pytest.mark.parametrize("trip", TRIPS, ids=lambda trip: trip.name.lower())
@fuzzed
@given(data=st.data())
def test_a_server_ignores_a_damaged_answer_and_goes_on(tmp_path_factory, trip: Trip, data) -> None:
    parties = federation(tmp_path_factory.mktemp("fuzz"), 4)
    server = parties.attempt()
    while server.trip is not Trip.DONE:
        for reply in parties.send()(server.requests()):
            if server.trip is trip:
                server.receive(damaged(data, reply))
            server.receive(reply)
        server.advance()
    vector, _ = parties.plain_sum(range(4))
    np.testing.assert_array_equal(server.result.vector, vector)
    assert not server.collected.faults, "what nobody signed is nobody's fault"


def test_every_reply_of_a_client_is_signed_even_to_rubbish(tmp_path: Path) -> None:
    parties = federation(tmp_path, 3)
    for rubbish in (b"", b"\0" * 100, b"FTSA\1\x63"):
        reply = Signed.read(parties.clients[0].handle(rubbish))
        assert reply.verified()
        assert Refusal.decode(reply.body).code == "FT901"
