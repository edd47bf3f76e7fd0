"""Settings of the gate that cannot be are refused, all at once; what is documented is what there is."""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.coordinator.gate.settings import GateSettings, ListenAddress, parse_address
from fedtune.errors import FederationError

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "gate.md"
LEAST: dict[str, Any] = {
    "listen": ("0.0.0.0:9092",),
    "superlink": "127.0.0.1:9091",
    "certificate": Path("server.pem"),
    "key": Path("server.key"),
    "authority": Path("ca.pem"),
}
NUMBERS = [field.name for field in fields(GateSettings) if field.type in {"int", "float"}]


def problems(**changes: Any) -> list[tuple[str, str]]:
    with pytest.raises(FederationError) as caught:
        GateSettings(**(LEAST | changes))
    assert {problem.code for problem in caught.value.problems} == {"FT651"}
    return [(problem.where.removeprefix("gate."), problem.what) for problem in caught.value.problems]


def test_an_address_is_read_as_it_is_written() -> None:
    assert parse_address("0.0.0.0:9092") == ListenAddress(host="0.0.0.0", port=9092)
    assert parse_address("[2001:db8::7]:0") == ListenAddress(host="2001:db8::7", port=0)
    assert [str(parse_address(text)) for text in ("[::]:1", "10.0.0.1:65535")] == ["[::]:1", "10.0.0.1:65535"]


@given(st.ip_addresses(), st.integers(0, 2**16 - 1))
def test_every_address_is_read_back(ip: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = str(ListenAddress(host=str(ip), port=port))
    if isinstance(ip, ipaddress.IPv6Address) and ip.scope_id:
        return
    assert parse_address(text) == ListenAddress(host=str(ip), port=port)


@given(st.text(max_size=40) | st.from_regex(r"[\[\]0-9a-f:.]{1,30}:[0-9]{1,6}", fullmatch=True))
def test_anything_else_is_refused_with_a_sentence(text: str) -> None:
    with suppress(ValueError):
        parsed = parse_address(text)
        assert ipaddress.ip_address(parsed.host).version == (6 if parsed.is_v6 else 4)
        assert 0 <= parsed.port < 2**16


@pytest.mark.parametrize("host", ["192.0.2.7", "0.0.0.0", "[::]", "[2001:db8::1]"])
def test_the_superlink_is_on_loopback_or_the_gate_does_not_start(host: str) -> None:
    ((where, what),) = problems(superlink=f"{host}:9091")
    assert where == "superlink"
    assert "not on loopback" in what


@pytest.mark.parametrize("superlink", ["127.0.0.1:9091", "[::1]:9091", "127.8.0.1:1"])
def test_any_address_of_loopback_will_do(superlink: str) -> None:
    assert GateSettings(**(LEAST | {"superlink": superlink})).superlink == superlink


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "3", None])
def test_a_number_is_one_and_above_zero(name: str, value: object) -> None:
    assert [where for where, _ in problems(**{name: value})] == [name]


def test_all_problems_are_reported_at_once() -> None:
    found = problems(listen=("localhost:9092", "::1"), superlink="here", max_body_bytes=0, burst_requests=1.5)
    assert [where for where, _ in found] == [
        "listen",
        "listen",
        "superlink",
        "max_body_bytes",
        "burst_requests",
    ]
    assert problems(listen=()) == [("listen", "the gate listens nowhere")]
    assert problems(superlink="127.0.0.1:0") == [("superlink", "127.0.0.1:0 names no port")]


def test_the_reference_lists_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    defaults = {
        field.name: "" if field.default in {MISSING, None} else f"{field.default:,}"
        for field in fields(GateSettings)
    }
    assert rows == defaults
