"""Who watches a site learns how it is doing, from this machine alone, and nothing of its data."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtune.errors import MachineError
from fedtune.site.health import serve_health
from fedtune.site.health_state import KINDS, OUTCOMES, SiteState
from fedtune.site.health_text import health_fields, metrics_text


class Clock:
    def __init__(self) -> None:
        self.now = 1_790_000_000.0

    def __call__(self) -> float:
        return self.now


def site(clock: Clock | None = None, **names: str) -> SiteState:
    told = {"version": "0.1.0", "site": "cardiology", "federation": "heart", **names}
    return SiteState(**told, clock=clock or Clock())


# The format 0.0.4 as its specification words it, read by nothing that is ours.
NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
NUMBER = r"[+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|Inf)|NaN"
HELP = re.compile(rf"# HELP ({NAME}) ([^\\\n]|\\\\|\\n)*")
TYPE = re.compile(rf"# TYPE ({NAME}) (counter|gauge)")
SAMPLE = re.compile(rf"({NAME})(?:\{{((?:{LABEL})(?:,{LABEL})*)\}})? ({NUMBER})")


def parsed(text: str) -> dict[str, dict[str, float]]:
    """Read an exposition strictly: each family once and whole, HELP before TYPE before its samples."""
    assert text.endswith("\n")
    families: dict[str, dict[str, float]] = {}
    current = ""
    lines = iter(text.removesuffix("\n").split("\n"))
    for line in lines:
        if line.startswith("#"):
            described, typed = HELP.fullmatch(line), TYPE.fullmatch(next(lines))
            assert described, line
            assert typed, line
            current = described[1]
            assert typed[1] == current
            assert current not in families
            assert (typed[2] == "counter") == current.endswith("_total")
            families[current] = {}
            continue
        sample = SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] == current
        labels = sample[2] or ""
        assert labels not in families[current]
        families[current][labels] = float(sample[3])
    return families


def families(state: SiteState, resident: int = 1) -> dict[str, dict[str, float]]:
    return parsed(metrics_text(state.snapshot(), resident_bytes=resident))


def test_the_metrics_count_what_happened() -> None:
    clock = Clock()
    state = site(clock)
    state.set_connected(True)
    state.set_model_loaded(True)
    with state.working("pilot", 3):
        state.answered("train", received=1_000, sent=200)
        state.trained(seconds=12.5)
        assert families(state)["fedtune_site_busy"] == {"": 1}
    state.trained(seconds=0.5)
    state.refused("train", received=10, sent=5, reasons=("hours", "rounds_per_day"))
    state.refused("query.secagg", received=10, sent=5, reasons=("hours",))
    state.failed("evaluate", received=1, sent=1, code="FT610")
    found = families(state, resident=4096)
    messages = found["fedtune_site_messages_total"]
    assert messages.pop('kind="train",outcome="answered"') == 1
    assert messages.pop('kind="train",outcome="refused"') == 1
    assert messages.pop('kind="secagg",outcome="refused"') == 1
    assert messages.pop('kind="evaluate",outcome="failed"') == 1
    assert set(messages.values()) == {0}
    assert len(messages) == len(KINDS) * len(OUTCOMES) - 4
    assert found["fedtune_site_refused_total"] == {'reason="hours"': 2, 'reason="rounds_per_day"': 1}
    single = {name: values[""] for name, values in found.items() if "" in values}
    assert single == {
        "fedtune_site_received_bytes_total": 1_021,
        "fedtune_site_sent_bytes_total": 211,
        "fedtune_site_rounds_trained_total": 2,
        "fedtune_site_training_seconds_total": 13.0,
        "fedtune_site_round": 3,
        "fedtune_site_busy": 0,
        "fedtune_site_connected": 1,
        "fedtune_site_paused": 0,
        "fedtune_site_model_loaded": 1,
        "fedtune_site_resident_memory_bytes": 4096,
        "fedtune_site_last_success_timestamp_seconds": clock.now,
    }
    assert found["fedtune_site_info"] == {'version="0.1.0",site="cardiology",federation="heart"': 1}


def test_what_has_no_value_yet_has_no_sample() -> None:
    found = families(site())
    assert found["fedtune_site_last_success_timestamp_seconds"] == {}
    assert found["fedtune_site_round"] == {}


@given(names=st.lists(st.text(), min_size=3, max_size=3), texts=st.lists(st.text(), max_size=5))
def test_the_format_holds_whatever_the_names_are(names: list[str], texts: list[str]) -> None:
    state = site(version=names[0], site=names[1], federation=names[2])
    for text in texts:
        with state.working(text, None):
            state.refused(text, received=1, sent=1, reasons=(text, *texts))
            state.failed(text, received=1, sent=1, code=text)
    parsed(metrics_text(state.snapshot(), resident_bytes=2**40))
    json.dumps(health_fields(state.snapshot()), allow_nan=False)


def test_what_comes_from_outside_cannot_make_the_metrics_grow() -> None:
    state = site()
    for number in range(1_000):
        text = f"kind-{number}"
        with state.working("x" * 10**5, number):
            state.refused(text, received=0, sent=0, reasons=(text,))
            state.refused(text, received=0, sent=0, reasons=(f'"{text}"',))
    found = families(state)
    assert len(found["fedtune_site_messages_total"]) == len(KINDS) * len(OUTCOMES)
    assert len(found["fedtune_site_refused_total"]) <= 65
    assert sum(found["fedtune_site_refused_total"].values()) == 2_000
    assert len(state.snapshot().run or "") == 200


def test_a_failure_degrades_a_site_until_it_succeeds_again() -> None:
    clock = Clock()
    state = site(clock)
    assert state.snapshot().status == "degraded", "not connected yet"
    state.set_connected(True)
    assert state.snapshot().status == "ok"
    state.trouble("FT610")
    assert state.snapshot().status == "degraded"
    clock.now += 1
    state.refused("train", received=0, sent=0, reasons=("hours",))
    assert state.snapshot().status == "degraded", "a refusal proves nothing"
    state.answered("train", received=0, sent=0)
    assert state.snapshot().status == "ok"
    state.set_paused(True)
    assert state.snapshot().status == "ok", "as its operator wanted"
    state.set_connected(False)
    assert state.snapshot().status == "degraded"
    state.stop()
    assert state.snapshot().status == "stopped"


def test_a_round_is_remembered_within_its_run_alone() -> None:
    state = site()
    for run, number, shown in (("a", None, None), ("a", 2, 2), ("a", None, 2), ("b", None, None)):
        with state.working(run, number):
            assert (state.snapshot().run, state.snapshot().round) == (run, shown)


def test_counting_from_many_threads_loses_nothing() -> None:
    state = site()

    def work() -> None:
        for _ in range(500):
            state.answered("train", received=2, sent=1)
            state.refused("train", received=0, sent=0, reasons=("hours",))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = state.snapshot()
    assert now.messages["train", "answered"] == now.messages["train", "refused"] == 2_000
    assert (now.bytes_received, now.bytes_sent, now.refused) == (4_000, 2_000, {"hours": 2_000})


CLOCK = Clock()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[SiteState, int]]:
    state = site(CLOCK)
    with serve_health(state, port=0) as (_, port):
        yield state, port


def asked(port: int, path: str, *, method: str = "GET", host: str | None = None) -> tuple[Any, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={} if host is None else {"Host": host})
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response, text


def test_health_says_how_it_is_in_its_status_too(served: tuple[SiteState, int]) -> None:
    state, port = served
    state.set_connected(False)
    response, text = asked(port, "/health")
    assert (response.status, json.loads(text)["status"]) == (503, "degraded")
    state.set_connected(True)
    state.failed("train", received=1, sent=1, code="FT610")
    state.trained(seconds=1)
    CLOCK.now += 1
    with state.working("pilot", 2):
        state.answered("train", received=1, sent=1)
    response, text = asked(port, "/health?verbose")
    assert response.status == 200
    assert json.loads(text) == {
        "status": "ok",
        "version": "0.1.0",
        "site": "cardiology",
        "federation": "heart",
        "connected": True,
        "paused": False,
        "model_loaded": False,
        "busy": False,
        "run": "pilot",
        "round": 2,
        "last_round_end": "2026-09-21T14:13:20Z",
        "last_success": "2026-09-21T14:13:21Z",
        "last_error": {"code": "FT610", "time": "2026-09-21T14:13:20Z"},
    }
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Server"].strip() == "fedtune"


def test_metrics_are_served_in_their_format(served: tuple[SiteState, int]) -> None:
    response, text = asked(served[1], "/metrics")
    assert response.status == 200
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert parsed(text)["fedtune_site_resident_memory_bytes"][""] > 10**6


def test_a_head_request_has_the_same_headers_and_no_body(served: tuple[SiteState, int]) -> None:
    response, text = asked(served[1], "/metrics", method="HEAD")
    assert (response.status, text) == (200, "")
    assert int(response.headers["Content-Length"]) > 100


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "LOCALHOST:9464", "127.0.0.1:1"])
def test_loopback_by_any_of_its_names_is_answered(served: tuple[SiteState, int], host: str) -> None:
    assert asked(served[1], "/metrics", host=host)[0].status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "127.0.0.2",
        "::1",
        "",
        "0",
    ],
)
def test_another_host_is_refused_which_a_rebound_name_would_be(
    served: tuple[SiteState, int], host: str
) -> None:
    for path in ("/metrics", "/health"):
        response, text = asked(served[1], path, host=host)
        assert (response.status, text) == (421, "Misdirected Request\n")


def raw(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))
        except ConnectionError:
            return b""


@pytest.mark.parametrize(
    "request_line",
    [b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n"],
)
def test_no_host_and_two_hosts_are_refused(served: tuple[SiteState, int], request_line: bytes) -> None:
    assert raw(served[1], request_line).startswith(b"HTTP/1.0 421 ")


@pytest.mark.parametrize("path", ["/", "/health/", "/x", "/metrics/../health"])
def test_there_is_nothing_else(served: tuple[SiteState, int], path: str) -> None:
    assert asked(served[1], path)[0].status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT"])
def test_nothing_can_be_changed(served: tuple[SiteState, int], method: str) -> None:
    response, text = asked(served[1], "/health", method=method)
    assert (response.status, text) == (501, "Not Implemented\n")


REQUESTS = st.binary(max_size=200) | st.builds(
    lambda method, path, rest: method + b" " + path + b" HTTP/1.1\r\n" + rest + b"\r\n\r\n",
    st.sampled_from([b"GET", b"HEAD", b"POST", b""]),
    st.sampled_from([b"/health", b"/metrics", b"*", b"http://x/health"]) | st.binary(max_size=20),
    st.binary(max_size=60) | st.just(b"Host: localhost"),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(request=REQUESTS)
def test_no_bytes_stop_it_or_are_given_back(
    served: tuple[SiteState, int], request: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    head, _, body = raw(served[1], request).partition(b"\r\n\r\n")
    if b" 200 " not in head[:20] and b" 503 " not in head[:20]:
        assert len(body) < 60, "an error says its status and no more"
    assert asked(served[1], "/metrics")[0].status == 200
    assert capfd.readouterr() == ("", "")


def test_more_than_a_few_at_once_are_turned_away_and_the_rest_is_served() -> None:
    with serve_health(site(), port=0) as address:
        idle = [socket.create_connection(address, timeout=30) for _ in range(8)]
        for connection in idle:
            connection.sendall(b"GET /health")
        with socket.create_connection(address, timeout=30) as turned_away:
            assert turned_away.recv(10) == b""
        for connection in idle:
            connection.sendall(b" HTTP/1.0\r\nHost: localhost\r\n\r\n")
            with connection, connection.makefile("rb") as answer:
                assert b"cardiology" in answer.read()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "localhost", "example.org", ""])
def test_it_listens_on_no_address_but_loopback(host: str) -> None:
    with pytest.raises(MachineError) as caught, serve_health(site(), host=host, port=0):
        pass
    assert caught.value.problems[0].code == "FT860"


def test_a_port_that_is_taken_is_a_problem_with_a_fix(served: tuple[SiteState, int]) -> None:
    for port in (served[1], 10**6):
        with pytest.raises(MachineError) as caught, serve_health(site(), port=port):
            pass
        assert caught.value.problems[0].code == "FT861"


def test_it_ends_with_its_block_and_its_port_is_free_again() -> None:
    with serve_health(site(), port=0) as (host, port):
        assert host == "127.0.0.1"
    with serve_health(site(), port=port):
        assert asked(port, "/metrics")[0].status == 200


PAGES = Path(__file__).parents[2] / "docs" / "reference"


@pytest.mark.parametrize(("code", "host", "port"), [("FT860", "0.0.0.0", 0), ("FT861", "127.0.0.1", 10**6)])
def test_the_page_of_an_error_shows_the_message_that_is_printed(code: str, host: str, port: int) -> None:
    with pytest.raises(MachineError) as caught, serve_health(site(), host=host, port=port):
        pass
    page = (PAGES / "errors" / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert "\n## What to do\n" in page
    assert "\n".join(f"    {line}" for line in str(caught.value).splitlines()) in page


def test_the_reference_lists_every_metric_and_every_key_and_no_other() -> None:
    page = (PAGES / "health.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert listed == [*health_fields(site().snapshot()), *families(site())]
