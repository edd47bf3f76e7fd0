"""Requests, bundles and connections from outside: whatever was done to them, a problem and no other error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.enrolment import NOW, Coordinator

from fedtune.errors import FederationError
from fedtune.keys import strict
from fedtune.keys.bundle import Bundle, parse_bundle
from fedtune.keys.certificates import to_pem
from fedtune.keys.joining import read_connection
from fedtune.keys.node import request_path
from fedtune.keys.private import new_key
from fedtune.keys.request import Request, parse_request, sign_request
from fedtune.secagg.entry import apply_for_roster
from fedtune.secagg.identity import Identity
from fedtune.secagg.roster import GENESIS, Roster

Parse = Callable[[bytes], object]
KINDS = ["request", "bundle"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Coordinator:
    """One site has joined, with a roster."""
    coordinator = Coordinator(tmp_path_factory.mktemp("federation"))
    coordinator.begin()
    request = coordinator.ask("ear")
    roster = Roster(federation="f", version=1, previous=GENESIS, entries=(request.entry,))
    path = coordinator.root / "roster.json"
    path.write_text(roster.to_json())
    coordinator.answer("ear", roster=path)
    coordinator.join("ear")
    return coordinator


@pytest.fixture(scope="module")
def files(coordinator: Coordinator) -> dict[str, tuple[bytes, Parse]]:
    return {
        "request": (request_path(coordinator.root / "ear", "ear").read_bytes(), parse_request),
        "bundle": (coordinator.bundle("ear").read_bytes(), parse_bundle),
    }


def refused(parse: Parse, data: bytes, code: str) -> None:
    with pytest.raises(FederationError) as error:
        parse(data)
    assert {problem.code for problem in error.value.problems} == {code}
    assert len(str(error.value).splitlines()) == 3 * len(error.value.problems)


def code_of(kind: str) -> str:
    return {"request": "FT632", "bundle": "FT633"}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(files: dict[str, tuple[bytes, Parse]], kind: str) -> None:
    data, parse = files[kind]
    read = parse(data)
    assert isinstance(read, Request | Bundle)
    assert read.to_json() == data


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None)
@given(where=st.integers(0), change=st.integers(1, 255))
def test_one_byte_changed_anywhere_is_refused(
    files: dict[str, tuple[bytes, Parse]], kind: str, where: int, change: int
) -> None:
    data, parse = files[kind]
    changed = bytearray(data)
    changed[where % len(data)] ^= change
    refused(parse, bytes(changed), code_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(at=st.integers(0), to=st.integers(0), put=st.binary(max_size=40))
def test_a_part_that_is_cut_or_put_in_is_refused(
    files: dict[str, tuple[bytes, Parse]], kind: str, at: int, to: int, put: bytes
) -> None:
    data, parse = files[kind]
    start, end = sorted((at % (len(data) + 1), to % (len(data) + 1)))
    changed = data[:start] + put + data[end:]
    if changed != data:
        refused(parse, changed, code_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(files: dict[str, tuple[bytes, Parse]], kind: str, data: bytes) -> None:
    refused(files[kind][1], data, code_of(kind))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=200, deadline=None)
@given(which=st.integers(0), value=JSON)
def test_any_other_value_of_a_field_is_refused(
    files: dict[str, tuple[bytes, Parse]], kind: str, which: int, value: Any
) -> None:
    data, parse = files[kind]
    raw = json.loads(data)
    key = list(raw)[which % len(raw)]
    if raw[key] != value:
        changed = json.dumps(raw | {key: value}, indent=1).encode() + b"\n"
        refused(parse, changed, code_of(kind))


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"format": ' + b"9" * 5000 + b"}",
        b"\x80\x04cos\nsystem\n.",
        b" " * (70 * 2**10),
        "{}".encode("utf-16"),
        b'{"format": "\\ud800"}',
    ],
    ids=["lists", "objects", "number", "pickle", "blanks", "utf-16", "surrogate"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_what_breaks_parsers_is_refused(
    files: dict[str, tuple[bytes, Parse]], kind: str, data: bytes
) -> None:
    refused(files[kind][1], data, code_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_values_in_another_form_are_refused(
    files: dict[str, tuple[bytes, Parse]], kind: str
) -> None:
    data, parse = files[kind]
    raw = json.loads(data)
    turned = dict(reversed(raw.items()))
    for changed in (
        data.replace(b"\n", b"\r\n"),
        data.strip(),
        json.dumps(raw).encode(),
        strict.written(turned),
    ):
        refused(parse, changed, code_of(kind))


def requested(site: str = "ear", federation: str = "f") -> tuple[Request, Identity, Any]:
    identity, node = Identity.generate(), new_key()
    application = apply_for_roster(identity, federation=federation, site=site)
    return sign_request(application, identity=identity, node=node), identity, node


def test_both_keys_must_sign_and_sign_this() -> None:
    request, other = requested()[0], requested()[0]
    wrong = {
        "identity_signature": "it is not signed with the identity that it names",
        "node_signature": "it is not signed with the node key that it names",
    }
    for field, said in wrong.items():
        stolen = dataclasses.replace(request, **{field: getattr(other, field)})
        with pytest.raises(FederationError) as error:
            parse_request(stolen.to_json())
        assert [problem.what for problem in error.value.problems] == [said]
    with pytest.raises(FederationError) as error:
        parse_request(dataclasses.replace(request, node=other.node, nonce=other.nonce).to_json())
    assert {problem.what for problem in error.value.problems} == set(wrong.values())


def test_an_entry_of_another_is_not_asked_with() -> None:
    """Who knows another site's public entry cannot enrol with it: the identity signs the whole request."""
    victim, (_, attacker, node) = requested()[0], requested()
    for identity in (attacker, Identity.generate()):
        stolen = sign_request(victim.application, identity=identity, node=node)
        with pytest.raises(FederationError, match="not signed with the identity that it names"):
            parse_request(stolen.to_json())


def test_a_name_is_one_that_can_be_a_file() -> None:
    for site in ("../ear", "a/b", ".ear", "e r", "x" * 64):
        with pytest.raises(FederationError, match="letters, digits"):
            parse_request(requested(site)[0].to_json())


def signed(coordinator: Coordinator, **changes: Any) -> bytes:
    """The bundle, changed and signed anew by a coordinator who means it."""
    bundle = parse_bundle(coordinator.bundle("ear").read_bytes())
    identity = Identity.load(coordinator.folder / "coordinator.key")
    return dataclasses.replace(bundle, **changes).signed(identity).to_json()


@pytest.mark.parametrize(
    "changes",
    [
        {"site": "../ear"},
        {"federation": "f\n"},
        {"federation": "another"},
        {"server": "localhost"},
        {"server": "localhost:0"},
        {"server": "localhost:99999"},
        {"server": "Localhost:1"},
        {"server": "a b:1"},
        {"server": "::1:9092"},
        {"server": "[localhost]:9092"},
        {"issued": 2**62},
        {"issued": -1},
    ],
    ids=str,
)
def test_even_a_signed_bundle_says_nothing_impossible(
    coordinator: Coordinator, changes: dict[str, Any]
) -> None:
    refused(parse_bundle, signed(coordinator, **changes), "FT633")


@pytest.mark.parametrize("server", ["localhost:1", "192.0.2.7:65535", "[2001:db8::7]:9092"])
def test_an_address_is_a_name_or_an_address_with_a_port(coordinator: Coordinator, server: str) -> None:
    bundle = parse_bundle(signed(coordinator, server=server))
    assert (bundle.server, bundle.issued_at) == (server, NOW)


@pytest.mark.parametrize("key", ["authority", "roster"])
@settings(max_examples=100, deadline=None)
@given(value=JSON, cut=st.integers(0, 3000))
def test_a_signed_bundle_with_a_damaged_certificate_or_roster_is_refused(
    coordinator: Coordinator, key: str, value: Any, cut: int
) -> None:
    raw = json.loads(coordinator.bundle("ear").read_bytes())
    if key == "authority":
        pem = to_pem(parse_bundle(coordinator.bundle("ear").read_bytes()).authority).decode()
        value = pem[: cut % len(pem)] + pem[cut % len(pem) + 1 :]
    elif value is None:
        return
    unsigned = {name: item for name, item in (raw | {key: value}).items() if name != "signature"}
    try:
        body = strict.written(unsigned)
    except ValueError:
        return  # not a number: no JSON
    identity = Identity.load(coordinator.folder / "coordinator.key")
    signature = identity.sign("enrolment bundle", body).hex()
    refused(parse_bundle, strict.written(unsigned | {"signature": signature}), "FT633")


@settings(max_examples=150, deadline=None)
@given(where=st.integers(0), change=st.integers(1, 255))
def test_a_damaged_connection_is_a_problem_or_another_connection(
    coordinator: Coordinator, where: int, change: int
) -> None:
    path = coordinator.root / "ear" / "connection.json"
    data = bytearray(path.read_bytes())
    data[where % len(data)] ^= change
    damaged = coordinator.root / "damaged.json"
    damaged.write_bytes(data)
    read = None
    with suppress(FederationError):
        read = read_connection(damaged)
    if read is None:
        refused(lambda _: read_connection(damaged), bytes(data), "FT636")
    else:
        assert read.to_json() == data


def test_a_file_that_is_too_large_or_a_folder_is_refused(tmp_path: Path) -> None:
    from fedtune.keys.request import read_request

    large = tmp_path / "large"
    large.write_bytes(b" " * (64 * 2**10 + 1))
    for path in (large, tmp_path, tmp_path / "none"):
        with pytest.raises(FederationError) as error:
            read_request(path)
        assert [(problem.code, problem.where) for problem in error.value.problems] == [("FT632", str(path))]


def test_bundles_are_compared_by_the_second(coordinator: Coordinator) -> None:
    later = parse_bundle(signed(coordinator, issued=int((NOW + timedelta(seconds=1)).timestamp())))
    assert later.issued_at == NOW + timedelta(seconds=1)
