"""A gate on loopback with a stand-in for the SuperLink that remembers what reaches it."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from support.enrolment import Coordinator

from fedtune.coordinator.gate.server import Gate
from fedtune.coordinator.gate.settings import GateSettings

__all__ = [
    "NOWHERE",
    "TRICKS",
    "Seen",
    "StandIn",
    "certified",
    "client_of",
    "gate_settings",
    "mortal",
    "serving",
    "talk",
    "trusting",
]

TRICKS = [
    "/v1/fleet/../control/list-runs",
    "/v1/fleet/%2e%2e/control/list-runs",
    "/v1/fleet/..%2fcontrol/list-runs",
    "/v1/fleet/get-run/",
    "/v1/fleet/get-run;a=b",
    "/v1/fleet/get-run%20",
    "/v1/fleet/get-run%00",
    "/v1/fleet/get-run#x",
    "/v1/fleet//get-run",
    "//v1/fleet/get-run",
    "/./v1/fleet/get-run",
    "/v1/Fleet/get-run",
    "/V1/fleet/get-run",
    "/v1/fleet/GET-RUN",
    "/v1/fleet%2fget-run",
    "/v1/fleet\\get-run",
    "/v1/fle%65t/get-run",
    "http://127.0.0.1/v1/fleet/get-run",
    "https://127.0.0.1/v1/control/list-runs",
    "127.0.0.1:443",
    "*",
    "/",
    "",
    "/v1/fleet",
    "/v1/fleet/",
    "/v1/fleet/unknown",
    "/v1/control/list-runs",
    "/v1/runtime/acquire-task",
    "/v1/responses",
    "/docs",
    "/openapi.json",
    "/health",
]
"""Paths that are no Fleet route, and that some server or other might take for one or for the Control API."""

NOWHERE = "127.0.0.1:1"
"""A port of loopback where nobody listens."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One request as it arrived; `body` is None if it broke off."""

    method: str
    target: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None


async def echo(seen: Seen) -> Response:
    return Response(seen.body, media_type="application/protobuf", headers={"x-secret": "the SuperLink's"})


@dataclass
class StandIn:
    """Takes any request at all, remembers it, and answers as it is told."""

    answer: Callable[[Seen], Awaitable[Any]] = echo
    seen: list[Seen] = field(default_factory=list)
    _under_way: int = 0

    def forget(self) -> None:
        """Forget what came, once all that an earlier test began has ended."""
        deadline = time.monotonic() + 20
        while self._under_way:
            assert time.monotonic() < deadline, "a request does not end"
            time.sleep(0.01)
        self.seen.clear()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._under_way += 1
        try:
            await self._take(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await Request(scope, receive).body()
        except ClientDisconnect:
            body = None
        seen = Seen(
            method=scope["method"],
            target=scope["raw_path"],
            query=scope["query_string"],
            headers=tuple(scope["headers"]),
            body=body,
        )
        self.seen.append(seen)
        if body is not None:
            await (await self.answer(seen))(scope, receive, send)


def certified(folder: Path, *, ip: tuple[str, ...] = ("127.0.0.1", "::1")) -> Coordinator:
    """A coordinator's folder with an authority and a server's key and certificate."""
    coordinator = Coordinator(folder)
    coordinator.begin()
    coordinator.server(ip=ip)
    return coordinator


def gate_settings(coordinator: Coordinator, **changes: Any) -> GateSettings:
    """Settings of a gate on a free port of loopback."""
    given: dict[str, Any] = {
        "listen": ("127.0.0.1:0",),
        "superlink": NOWHERE,
        "certificate": coordinator.root / "tls" / "hub.pem",
        "key": coordinator.root / "tls" / "hub.key",
        "authority": coordinator.folder / "ca.pem",
    }
    return GateSettings(**(given | changes))


@contextmanager
def serving(app: Any, coordinator: Coordinator, port: int = 0) -> Iterator[str]:
    """Serve an ASGI application over TLS on loopback; yields its address."""
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
        ssl_certfile=coordinator.root / "tls" / "hub.pem",
        ssl_keyfile=coordinator.root / "tls" / "hub.key",
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", port)) as bound:
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        try:
            deadline = time.monotonic() + 20
            while not server.started:
                assert thread.is_alive(), "the stand-in did not start"
                assert time.monotonic() < deadline, "the stand-in did not start in time"
                time.sleep(0.01)
            yield address
        finally:
            server.should_exit = True
            thread.join(timeout=20)


@contextmanager
def mortal(coordinator: Coordinator, port: int) -> Iterator[None]:
    """Answer any request with 200 and no body, until the end cuts every connection as a kill would."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(coordinator.root / "tls" / "hub.pem", coordinator.root / "tls" / "hub.key")
    there: list[socket.socket] = []

    def serve(plain: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as wire:
            there.append(wire)
            heard = b""
            while more := wire.recv(2**16):
                heard += more
                if heard.endswith(b"0\r\n\r\n"):
                    heard = b""
                    wire.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    def accept(listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                plain, _ = listening.accept()
                threading.Thread(target=serve, args=(plain,), daemon=True).start()

    with socket.create_server(("127.0.0.1", port)) as listening:
        accepting = threading.Thread(target=accept, args=(listening,), daemon=True)
        accepting.start()
        try:
            yield
        finally:
            for each in (listening, *there):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            accepting.join(timeout=20)


def trusting(coordinator: Coordinator) -> ssl.SSLContext:
    """What a site trusts: this coordinator's authority and no other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(coordinator.folder / "ca.pem")
    return context


def talk(gate: Gate, context: ssl.SSLContext, *pieces: bytes, seconds: float = 10.0) -> bytes:
    """Send bytes to a gate as they are, and return what it says until it ends or waits for more."""
    address = gate.addresses[0]
    said = bytearray()
    with (
        socket.create_connection((address.host, address.port), timeout=seconds) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as wire,
    ):
        try:
            for piece in pieces:
                wire.sendall(piece)
            while more := wire.recv(2**16):
                said += more
        except (ConnectionError, TimeoutError, ssl.SSLError):
            pass
    return bytes(said)


def client_of(gate: Gate, context: ssl.SSLContext, *, host: str | None = None) -> httpx.Client:
    """A client of a gate, by the address that it listens on unless another is given."""
    base = f"https://{host}:{gate.addresses[0].port}" if host else f"https://{gate.addresses[0]}"
    return httpx.Client(verify=context, base_url=base, trust_env=False, timeout=10)
