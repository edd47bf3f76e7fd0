"""A request is a Fleet route byte for byte, or it is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gate import TRICKS

from fedtune.coordinator.gate.routes import FLEET_ROUTES, REQUEST_HEADERS, fleet_route, passed_on

HEADERS = [(b"host", b"gate"), (b"content-type", b"application/protobuf")]


@pytest.mark.parametrize("route", FLEET_ROUTES)
def test_a_fleet_route_is_one(route: str) -> None:
    assert fleet_route("POST", route.encode(), b"", HEADERS) == route


@pytest.mark.parametrize("target", TRICKS)
def test_no_trick_with_a_path_is_one(target: str) -> None:
    assert fleet_route("POST", target.encode(), b"", HEADERS) is None


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post", "POST ", ""]
)
def test_no_other_method_is_one(method: str) -> None:
    assert fleet_route(method, b"/v1/fleet/get-run", b"", HEADERS) is None


def test_neither_a_query_nor_another_protocol_nor_an_ambiguous_header_is_one() -> None:
    target = b"/v1/fleet/get-run"
    assert fleet_route("POST", target, b"a=b", HEADERS) is None
    assert fleet_route("POST", target, b"", [*HEADERS, (b"upgrade", b"websocket")]) is None
    for name in REQUEST_HEADERS:
        assert fleet_route("POST", target, b"", [(name, b"a"), (name, b"a")]) is None
        assert fleet_route("POST", target, b"", [(name, b"a"), (b"x-other", b"a")]) is not None


@given(st.sampled_from(FLEET_ROUTES), st.integers(0, 60), st.binary(max_size=3), st.integers(0, 3))
def test_a_route_that_was_changed_anywhere_is_none(route: str, at: int, piece: bytes, cut: int) -> None:
    raw = route.encode()
    changed = raw[:at] + piece + raw[at + cut :]
    expected = changed.decode() if changed in {each.encode() for each in FLEET_ROUTES} else None
    assert fleet_route("POST", changed, b"", HEADERS) == expected


@given(st.lists(st.tuples(st.sampled_from([*REQUEST_HEADERS, b"cookie", b"te", b"Host"]), st.binary())))
def test_only_headers_of_the_list_are_passed_on(headers: list[tuple[bytes, bytes]]) -> None:
    passed = passed_on(headers, REQUEST_HEADERS)
    assert passed == [header for header in headers if header[0] in REQUEST_HEADERS]
