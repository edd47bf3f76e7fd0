"""One request through the gate's application, without sockets: passed on, refused, counted and said."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedtune.coordinator.gate.passage import Passage
from fedtune.coordinator.gate.peers import PeerLog
from fedtune.coordinator.gate.settings import GateSettings
from fedtune.coordinator.gate.traffic import TrafficMeter, node_fingerprint
from fedtune.keys.private import new_key

HOST = "192.0.2.7"
NODE_KEY = b64encode(public_key_to_bytes(new_key().public_key()))
NODE = node_fingerprint(NODE_KEY)
SIGNED = [
    (b"flwr-public-key", NODE_KEY),
    (b"flwr-signature", b"SIGNATURE"),
    (b"content-type", b"application/protobuf"),
]


class Upstream(httpx.AsyncBaseTransport):
    """In place of the SuperLink: a function of a request whose body was not read."""

    def __init__(self, handle: Callable[[httpx.Request], Any]) -> None:
        self.handle = handle
        self.seen: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        response: httpx.Response = await self.handle(request)
        return response


def said(status: int, body: bytes, **headers: str) -> httpx.Response:
    """A response whose body has not been read yet."""

    async def pieces() -> AsyncIterator[bytes]:
        if body:
            yield body

    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, content=pieces(), headers={**named, "content-length": str(len(body))})


async def echo(request: httpx.Request) -> httpx.Response:
    body = b"".join([piece async for piece in request.stream])  # type: ignore[union-attr]
    return said(200, body, content_type="application/protobuf", set_cookie="x", location="/v1/control")


def answering(status: int) -> Callable[[httpx.Request], Any]:
    async def handle(request: httpx.Request) -> httpx.Response:
        await echo(request)
        return said(status, b"said")

    return handle


class Visit:
    """One gate that takes requests one after another."""

    def __init__(self, handle: Callable[[httpx.Request], Any] = echo, **changes: Any) -> None:
        nowhere = Path("nowhere")
        self.settings = GateSettings(
            listen=("127.0.0.1:0",),
            superlink="127.0.0.1:9091",
            certificate=nowhere,
            key=nowhere,
            authority=nowhere,
            **changes,
        )
        self.upstream, self.meter = Upstream(handle), TrafficMeter()
        client = httpx.AsyncClient(transport=self.upstream, trust_env=False)
        self.passage = Passage(self.settings, client, self.meter, PeerLog.of(self.settings))
        self.sent: list[Any] = []

    async def ask(
        self,
        *pieces: Any,
        method: str = "POST",
        path: bytes = b"/v1/fleet/get-run",
        query: bytes = b"",
        headers: list[tuple[bytes, bytes]] = SIGNED,
        take: Callable[[Any], Any] | None = None,
    ) -> int:
        """Ask once; a piece of the body is bytes, or a coroutine function that gives a message."""
        messages: list[Any] = [
            {"type": "http.request", "body": piece, "more_body": at < len(pieces) - 1}
            if isinstance(piece, bytes)
            else piece
            for at, piece in enumerate(pieces or (b"",))
        ]
        self.sent = []

        async def receive() -> Any:
            if not messages:
                return {"type": "http.disconnect"}
            message = messages.pop(0)
            return await message() if callable(message) else message

        async def send(message: Any) -> None:
            self.sent.append(message)
            if take is not None:
                await take(message)

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path.decode("latin-1"),
            "raw_path": path,
            "query_string": query,
            "headers": headers,
            "client": (HOST, 40000),
            "server": ("127.0.0.1", 9092),
            "scheme": "https",
        }
        await self.passage(scope, receive, send)
        return self.sent[0]["status"] if self.sent else 0

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


def visit(*pieces: Any, gate: Visit | None = None, **asked: Any) -> Visit:
    gate = gate or Visit()
    asyncio.run(gate.ask(*pieces, **asked))
    return gate


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "fedtune.coordinator.gate")
    return caplog


def test_a_fleet_request_is_passed_on_with_the_headers_of_the_list_and_no_other() -> None:
    more = [
        (b"host", b"gate.example.org"),
        (b"cookie", b"a"),
        (b"connection", b"keep-alive, flwr-signature"),
        (b"x-forwarded-for", b"10.0.0.1"),
        (b"transfer-encoding", b"chunked"),
        (b"flwr-task-token", b"a"),
        (b"authorization", b"Bearer x"),
        (b"expect", b"100-continue"),
    ]
    gate = visit(b"one", b"two", headers=SIGNED + more)
    (request,) = gate.upstream.seen
    assert str(request.url) == "https://127.0.0.1:9091/v1/fleet/get-run"
    assert set(request.headers) - {"accept", "accept-encoding", "connection", "user-agent"} == {
        "host",
        "flwr-public-key",
        "flwr-signature",
        "content-type",
        "x-forwarded-for",
        "transfer-encoding",
    }
    assert (request.headers["x-forwarded-for"], request.headers["host"]) == (HOST, "127.0.0.1:9091")
    assert request.headers["connection"] == "keep-alive"
    assert (gate.sent[0]["status"], gate.body) == (200, b"onetwo")
    assert gate.headers == {b"content-type": b"application/protobuf", b"content-length": b"6"}


@pytest.mark.parametrize(
    "path", [b"/v1/control/start-run", b"/v1/fleet/../control/start-run", b"/docs", b"*"]
)
def test_anything_else_is_not_there_and_is_said_once(path: bytes, lines: pytest.LogCaptureFixture) -> None:
    gate = visit(path=path, query=b"secret=1")
    assert gate.upstream.seen == []
    assert (gate.sent[0]["status"], gate.body) == (404, b"")
    assert gate.headers == {b"content-length": b"0", b"connection": b"close"}
    assert lines.messages == [f"{HOST}: refused POST {path.decode()}: not a route of the Fleet API"]


def test_a_line_about_a_request_is_short_and_printable(lines: pytest.LogCaptureFixture) -> None:
    visit(path=b"/\x1b[2J\r\nroot\xff" + b"a" * 5000, method="G" * 500)
    (line,) = lines.messages
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 250


def test_no_other_protocol_is_spoken() -> None:
    with pytest.raises(TypeError, match="websocket"):
        asyncio.run(Visit().passage({"type": "websocket"}, None, None))  # type: ignore[arg-type]


def test_a_body_of_the_most_bytes_passes_and_one_more_does_not(lines: pytest.LogCaptureFixture) -> None:
    gate = Visit(max_body_bytes=10)
    assert visit(b"12345", b"67890", gate=gate).sent[0]["status"] == 200
    assert visit(b"12345", b"678901", gate=gate).sent[0]["status"] == 413
    declared = [*SIGNED, (b"content-length", b"11")]
    before = len(gate.upstream.seen)
    assert visit(b"12345678901", gate=gate, headers=declared).sent[0]["status"] == 413
    assert len(gate.upstream.seen) == before
    assert visit(b"1", b"2" * 10, gate=gate, headers=[*SIGNED, (b"content-length", b"3")]).body == b""
    assert gate.sent[0]["status"] == 413
    assert [line.partition("get-run: ")[2] for line in lines.messages] == [
        "a body of more than 10 bytes",
        "11 bytes of body are too many",
        "a body of more than 10 bytes",
    ]


@pytest.mark.parametrize("declared", [b"-1", b"9" * 5000, b"1e3", b"\xb2"])
def test_a_length_that_is_no_number_is_refused(declared: bytes) -> None:
    gate = visit(headers=[*SIGNED, (b"content-length", declared)])
    assert gate.sent[0]["status"] == 413
    assert gate.upstream.seen == []


def test_a_body_travels_piece_by_piece_in_both_directions() -> None:
    """Each side waits for the other after every piece: who holds a body whole never gets to its end."""

    async def run() -> None:
        passed = [asyncio.Event() for _ in range(6)]

        async def upstream(request: httpx.Request) -> httpx.Response:
            number = 0
            async for _ in request.stream:  # type: ignore[union-attr]
                passed[number].set()
                number += 1

            async def pieces() -> AsyncIterator[bytes]:
                for at in range(3):
                    yield b"piece"
                    await passed[3 + at].wait()

            return httpx.Response(200, content=pieces())

        def piece(at: int) -> Any:
            async def next_piece() -> Any:
                if at:
                    await passed[at - 1].wait()
                return {"type": "http.request", "body": b"piece", "more_body": at < 2}

            return next_piece

        taken = iter(passed[3:])

        async def take(message: Any) -> None:
            if message.get("body"):
                next(taken).set()

        gate = Visit(upstream)
        assert await gate.ask(piece(0), piece(1), piece(2), take=take) == 200
        assert gate.body == b"piecepiecepiece"

    asyncio.run(run())


async def never() -> Any:
    await asyncio.Event().wait()


@pytest.mark.parametrize("limit", ["idle_seconds", "body_seconds"])
def test_a_body_that_does_not_come_is_not_waited_for(limit: str, lines: pytest.LogCaptureFixture) -> None:
    async def more() -> Any:
        return {"type": "http.request", "body": b"123", "more_body": True}

    gate = visit(more, never, gate=Visit(**{limit: 0.02}))
    assert (gate.sent[0]["status"], gate.headers[b"retry-after"]) == (503, b"5")
    assert lines.messages == [f"{HOST}: refused /v1/fleet/get-run: its body is too slow, 3 bytes so far"]


def test_a_body_that_drips_is_not_waited_for_longer_than_a_body_may_take() -> None:
    async def drip() -> Any:
        await asyncio.sleep(0.005)
        return {"type": "http.request", "body": b"1", "more_body": True}

    gate = visit(*[drip] * 1000, gate=Visit(idle_seconds=5, body_seconds=0.05))
    assert gate.sent[0]["status"] == 503


def test_an_answer_that_is_not_taken_is_not_kept(lines: pytest.LogCaptureFixture) -> None:
    async def take(message: Any) -> None:
        if message["type"] == "http.response.body":
            await never()

    gate = visit(b"x", gate=Visit(idle_seconds=0.02), take=take)
    assert gate.sent[-1].get("more_body") is not False
    assert lines.messages == [f"{HOST}: takes the answer to /v1/fleet/get-run too slowly, 0 bytes so far"]
    assert gate.meter.snapshot().nodes == {}


def test_a_peer_that_goes_away_in_its_body_is_not_answered(lines: pytest.LogCaptureFixture) -> None:
    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def more() -> Any:
        return {"type": "http.request", "body": b"123", "more_body": True}

    gate = visit(more, gone)
    assert gate.sent == []
    assert lines.messages == []


@pytest.mark.parametrize("error", [httpx.ConnectError, httpx.ReadTimeout, httpx.RemoteProtocolError])
def test_without_a_superlink_a_site_is_told_to_come_back(
    error: type[httpx.TransportError], lines: pytest.LogCaptureFixture
) -> None:
    async def fail(request: httpx.Request) -> httpx.Response:
        raise error("no\nbody")

    gate = visit(gate=Visit(fail))
    assert (gate.sent[0]["status"], gate.headers[b"retry-after"]) == (503, b"5")
    (line,) = lines.messages
    assert "the SuperLink does not answer" in line
    assert line.isprintable()


def test_a_superlink_that_fails_is_asked_again_later(lines: pytest.LogCaptureFixture) -> None:
    async def fail(request: httpx.Request) -> httpx.Response:
        return httpx.Response(500, content=b"(sqlite3.OperationalError) database is locked")

    gate = visit(gate=Visit(fail))
    assert (gate.sent[0]["status"], gate.headers[b"retry-after"]) == (503, b"5")
    assert gate.body == b""
    assert lines.messages == [f"{HOST}: /v1/fleet/get-run: the SuperLink failed, see its log"]


def test_an_answer_that_breaks_off_does_not_end_as_a_whole_one(lines: pytest.LogCaptureFixture) -> None:
    async def broken(request: httpx.Request) -> httpx.Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"
            raise httpx.ReadError("gone")

        return httpx.Response(200, content=pieces())

    gate = visit(gate=Visit(broken))
    assert gate.sent[-1]["more_body"] is True
    assert lines.messages == [f"{HOST}: the SuperLink's answer to /v1/fleet/get-run broke off (ReadError)"]
    assert gate.meter.snapshot().nodes == {}


def test_what_goes_wrong_in_the_gate_itself_does_not_end_a_supernode(lines: pytest.LogCaptureFixture) -> None:
    async def fail(request: httpx.Request) -> httpx.Response:
        raise RuntimeError("a mistake")

    assert visit(gate=Visit(fail)).sent[0]["status"] == 503
    assert lines.messages == [f"{HOST}: /v1/fleet/get-run went wrong at the gate"]


def test_a_gate_that_stops_tells_who_waits_to_come_back() -> None:
    async def wait(request: httpx.Request) -> httpx.Response:
        await never()
        raise AssertionError

    async def run() -> None:
        gate = Visit(wait)
        task = asyncio.create_task(gate.ask())
        while not gate.upstream.seen:
            await asyncio.sleep(0)
        task.cancel()
        assert await task == 503

    asyncio.run(run())


def test_too_many_requests_of_one_address_are_told_to_come_back_and_said_once(
    lines: pytest.LogCaptureFixture,
) -> None:
    gate = Visit(requests_per_second=1e-6, burst_requests=3)
    asked = [visit(gate=gate).sent[0]["status"] for _ in range(6)]
    assert asked == [200, 200, 200, 503, 503, 503]
    assert len(gate.upstream.seen) == 3
    assert [line for line in lines.messages if "too many" in line] == [
        f"{HOST}: too many requests, refused from POST /v1/fleet/get-run on"
    ]


@pytest.mark.parametrize("status", [401, 403, 412])
def test_who_is_refused_by_the_superlink_is_named_and_not_counted(
    status: int, lines: pytest.LogCaptureFixture
) -> None:
    gate = visit(b"x", gate=Visit(answering(status)))
    assert (gate.sent[0]["status"], gate.body) == (status, b"said")
    assert lines.messages == [
        f"{HOST}: the SuperLink refused /v1/fleet/get-run with {status} to the node key {NODE}"
    ]
    assert "SIGNATURE" not in lines.text
    assert gate.meter.snapshot().nodes == {}


@pytest.mark.parametrize("headers", [[], [(b"flwr-public-key", b"nonsense")]])
def test_who_shows_no_key_is_refused_by_its_address(
    headers: list[tuple[bytes, bytes]], lines: pytest.LogCaptureFixture
) -> None:
    visit(gate=Visit(answering(401)), headers=headers)
    (line,) = lines.messages
    assert line.startswith(f"{HOST}: ")
    assert line.endswith("to the node key (none that can be read)")


def test_traffic_counts_for_the_node_whose_key_was_believed() -> None:
    gate = Visit()
    visit(b"12345", gate=gate)
    visit(b"123", gate=gate)
    visit(b"123456789", gate=gate, headers=[])
    (node,) = gate.meter.snapshot().nodes.items()
    assert node[0] == NODE
    assert (node[1].requests, node[1].bytes_in, node[1].bytes_out) == (2, 8, 8)


def test_a_node_that_comes_is_said(lines: pytest.LogCaptureFixture) -> None:
    visit(path=b"/v1/fleet/activate-node")
    assert lines.messages == [f"{HOST}: the node with the key {NODE} is there"]
