"""Traffic of nodes by the fingerprint of their keys, in memory and in a file that may be damaged."""

from __future__ import annotations

import threading
from base64 import b64encode
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtune.coordinator.gate.traffic import (
    NodeTraffic,
    Traffic,
    TrafficMeter,
    node_fingerprint,
    read_traffic,
    write_traffic,
)
from fedtune.errors import FederationError
from fedtune.keys.private import new_key, public_hash
from fedtune.secagg.entry import fingerprint

KEY = new_key().public_key()
moments = st.datetimes(timezones=st.just(UTC))
counts = st.integers(0, 2**63 - 1)
nodes = st.builds(NodeTraffic, requests=counts, bytes_in=counts, bytes_out=counts, last_seen=moments)
traffics = st.builds(Traffic, since=moments, nodes=st.dictionaries(st.text("abcdefg-", min_size=1), nodes))


def header(key: ec.EllipticCurvePublicKey) -> bytes:
    return b64encode(public_key_to_bytes(key))


def test_a_node_has_the_name_that_the_keys_commands_print() -> None:
    assert node_fingerprint(header(KEY)) == fingerprint(public_hash(KEY))


def test_a_key_of_another_kind_has_none() -> None:
    others = [
        ec.generate_private_key(ec.SECP256R1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
    ]
    for other in others:
        pem = other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        assert node_fingerprint(b64encode(pem)) is None


@given(st.binary(max_size=300) | st.binary(max_size=300).map(b64encode))
def test_anything_else_has_none(raw: bytes) -> None:
    assert node_fingerprint(raw) is None


@given(st.integers(0, 400), st.integers(1, 255))
def test_a_damaged_key_has_none_or_is_another(at: int, flip: int) -> None:
    raw = bytearray(header(KEY))
    raw[at % len(raw)] ^= flip
    named = node_fingerprint(bytes(raw))
    assert named is None or len(named) == 39


def test_threads_count_together() -> None:
    meter = TrafficMeter()

    def work() -> None:
        for _ in range(500):
            meter.count("n", bytes_in=2, bytes_out=3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    node = meter.snapshot().nodes["n"]
    assert (node.requests, node.bytes_in, node.bytes_out) == (2000, 4000, 6000)


def test_a_snapshot_stays_as_it_was_and_counting_goes_on_after_a_restart() -> None:
    meter = TrafficMeter()
    meter.count("a", bytes_in=1, bytes_out=0)
    before = meter.snapshot()
    again = TrafficMeter(before)
    again.count("a", bytes_in=1, bytes_out=5)
    assert before.nodes["a"].bytes_in == 1
    after = again.snapshot()
    assert (after.since, after.nodes["a"].requests, after.nodes["a"].bytes_in) == (before.since, 2, 2)


def test_more_nodes_than_a_federation_has_are_not_counted() -> None:
    meter = TrafficMeter()
    for number in range(5000):
        meter.count(str(number), bytes_in=1, bytes_out=1)
    assert len(meter.snapshot().nodes) == 4096


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traffics)
def test_what_is_written_is_read(tmp_path: Path, traffic: Traffic) -> None:
    write_traffic(tmp_path / "traffic.json", traffic)
    assert read_traffic(tmp_path / "traffic.json") == traffic


def test_no_file_is_no_traffic(tmp_path: Path) -> None:
    assert read_traffic(tmp_path / "traffic.json") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(traffics, st.data())
def test_a_damaged_file_is_refused_or_is_traffic_all_the_same(
    tmp_path: Path, traffic: Traffic, data: st.DataObject
) -> None:
    text = bytearray(traffic.to_json().encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path / "traffic.json"
    path.write_bytes(text)
    with suppress(FederationError):
        assert isinstance(read_traffic(path), Traffic)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": "fedtune-gate-traffic/2", "since": "2026-01-01T00:00:00+00:00", "nodes": {}}',
        '{"format": "fedtune-gate-traffic/1", "since": "2026-01-01", "nodes": {}}',
        '{"format": "fedtune-gate-traffic/1", "since": "2026-01-01T00:00:00+00:00", "nodes": []}',
        '{"format": "fedtune-gate-traffic/1", "since": 3, "nodes": {}}',
        "[" * 100_000,
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "traffic.json").write_text(text)
    with pytest.raises(FederationError, match="FT653"):
        read_traffic(tmp_path / "traffic.json")


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="FT653"):
        read_traffic(tmp_path)


def test_the_moment_of_a_node_is_when_it_was_last_seen() -> None:
    meter = TrafficMeter()
    begun = datetime.now(UTC).replace(microsecond=0)
    meter.count("a", bytes_in=0, bytes_out=0)
    assert meter.snapshot().nodes["a"].last_seen >= begun
