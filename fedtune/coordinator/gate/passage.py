"""One request on its way from a site to the SuperLink, and the answer on its way back.

What is refused, and how Flower's SuperNode takes it (flwr 1.41, `flwr.supercore.retry.http_retry`):

====================================  ======  =========================================================
request                               status  the SuperNode
====================================  ======  =========================================================
not a Fleet route                     404     never asks for one
a body over `max_body_bytes`          413     gives this reply up and says so
headers over `max_head_bytes`         431     never has so many
too many requests, too slow a body,   503     tries again, in up to 20 s; 429 and 408, which say the same
no SuperLink                                  more exactly, would end it
====================================  ======  =========================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Final

import httpx
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fedtune.coordinator.gate.peers import LOGGER_NAME, PeerLog, shown
from fedtune.coordinator.gate.routes import (
    ACTIVATE,
    NODE_KEY_HEADER,
    REQUEST_HEADERS,
    RESPONSE_HEADERS,
    Headers,
    fleet_route,
    passed_on,
)
from fedtune.coordinator.gate.settings import GateSettings
from fedtune.coordinator.gate.throttle import Throttle, peer_group
from fedtune.coordinator.gate.traffic import TrafficMeter, node_fingerprint

__all__ = ["Passage", "answer"]

_LOG: Final = logging.getLogger(LOGGER_NAME)
_RETRY_SECONDS: Final = 5
_MOST_DIGITS: Final = 18
_REFUSALS: Final = frozenset({401, 403, 412})
"""Not signed by a node that is registered; not of a run that goes on; a node that cannot be activated."""

_FAILED: Final = 500
"""Flower's SuperLink says this when its database is busy for more than 5 s. A SuperNode that reads it asks
for no more messages and does not end; after a 503 it tries again."""


def answer(status: int) -> Response:
    """An answer of the gate's own: no body, and the connection ends with it."""
    retry = {"retry-after": str(_RETRY_SECONDS)} if status == 503 else {}
    return Response(status_code=status, headers={"connection": "close", **retry})


class _BodyError(Exception):
    """The body of a request did not come as it should."""


class _TooLarge(_BodyError): ...


class _TooSlow(_BodyError): ...


class _PeerGone(_BodyError): ...


class _Body(AsyncIterator[bytes]):
    """The body of a request, piece by piece as it comes; counts it."""

    def __init__(self, receive: Receive, settings: GateSettings) -> None:
        self.size = 0
        self._receive, self._settings = receive, settings
        self._more = True
        self._deadline = asyncio.get_running_loop().time() + settings.body_seconds

    async def __anext__(self) -> bytes:
        while self._more:
            message = await self._next()
            piece: bytes = message.get("body", b"")
            self._more = message.get("more_body", False)
            self.size += len(piece)
            if self.size > self._settings.max_body_bytes:
                raise _TooLarge
            if piece:
                return piece
        raise StopAsyncIteration

    async def _next(self) -> Message:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(min(self._deadline, now + self._settings.idle_seconds)):
                message = await self._receive()
        except TimeoutError:
            raise _TooSlow from None
        if message["type"] == "http.disconnect":
            raise _PeerGone
        return message


@dataclass(kw_only=True)
class _Errand:
    """One request for a Fleet route that is passed on, and how far its answer is."""

    host: str
    route: str
    scope: Scope
    body: _Body
    started: bool = False
    sent: int = 0


class Passage:
    """The ASGI application of the gate.

    Guarantees: the SuperLink is asked for nothing but a route of `FLEET_ROUTES`, by POST, without a query,
    and with no header but those of `REQUEST_HEADERS`, the peer's address and what the gate's own client adds;
    a body is never held whole; a log line never holds a body, a signature or a query.

    Args:
        settings: Limits and addresses.
        client: Speaks to the SuperLink, and to nobody else.
        meter: Where traffic is counted.
        peers: Where refusals are written down.
    """

    def __init__(
        self, settings: GateSettings, client: httpx.AsyncClient, meter: TrafficMeter, peers: PeerLog
    ) -> None:
        self._settings, self._client, self._meter, self._peers = settings, client, meter, peers
        self._throttle = Throttle(
            rate=settings.requests_per_second, burst=settings.burst_requests, peers=settings.max_peers
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise TypeError(f"the gate speaks HTTP, got {scope['type']!r}")
        host = scope["client"][0] if scope.get("client") else "unknown"
        route = fleet_route(scope["method"], scope["raw_path"], scope["query_string"], scope["headers"])
        if route is None:
            self._peers.say(host, f"refused {_asked(scope)}: not a route of the Fleet API")
            await answer(404)(scope, receive, send)
            return
        status = self._refused(host, scope)
        if status is not None:
            await answer(status)(scope, receive, send)
            return
        errand = _Errand(host=host, route=route, scope=scope, body=_Body(receive, self._settings))
        try:
            status = await self._run(errand, send)
        except asyncio.CancelledError:  # the gate stops; its server would say 500, which ends a SuperNode
            status = None if errand.started else 503
        except Exception:
            _LOG.exception("%s: %s went wrong at the gate", host, route)
            status = None if errand.started else 503
        if status is not None:
            await answer(status)(scope, receive, send)

    def _refused(self, host: str, scope: Scope) -> int | None:
        """The status with which a request for a Fleet route is refused, or None if it is passed on."""
        taken = self._throttle.take(peer_group(host))
        if not taken.allowed:
            if taken.refused == 1:
                self._peers.say(host, f"too many requests, refused from {_asked(scope)} on")
            return 503
        head = len(scope["raw_path"]) + sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        if head > self._settings.max_head_bytes:
            self._peers.say(host, f"refused {_asked(scope)}: {head} bytes of headers are too many")
            return 431
        declared = _header(scope["headers"], b"content-length") or b"0"
        number = int(declared) if declared.isdigit() and len(declared) <= _MOST_DIGITS else None
        if number is None or number > self._settings.max_body_bytes:
            self._peers.say(host, f"refused {_asked(scope)}: {shown(declared)} bytes of body are too many")
            return 413
        return None

    async def _run(self, errand: _Errand, send: Send) -> int | None:
        """Do an errand; the status of an answer of the gate's own if there was none of the SuperLink's."""
        request = self._client.build_request(
            "POST",
            f"https://{self._settings.superlink}{errand.route}",
            headers=[
                *passed_on(errand.scope["headers"], REQUEST_HEADERS),
                (b"x-forwarded-for", errand.host.encode()),
            ],
            content=errand.body,
        )
        most = self._settings.max_body_bytes
        try:
            response = await self._client.send(request, stream=True)
        except _PeerGone:
            return None
        except _TooLarge:
            self._peers.say(errand.host, f"refused {errand.route}: a body of more than {most} bytes")
            return 413
        except _TooSlow:
            self._peers.say(
                errand.host, f"refused {errand.route}: its body is too slow, {errand.body.size} bytes so far"
            )
            return 503
        except httpx.HTTPError as error:
            said = f"{type(error).__name__} {shown(str(error))}".strip()
            self._peers.say(errand.host, f"{errand.route}: the SuperLink does not answer ({said})")
            return 503
        try:
            if response.status_code == _FAILED:
                self._peers.say(errand.host, f"{errand.route}: the SuperLink failed, see its log")
                return 503
            await self._return(errand, response, send)
        finally:
            await response.aclose()
        return None

    async def _return(self, errand: _Errand, response: httpx.Response, send: Send) -> None:
        """Pass an answer on. If it breaks off, uvicorn ends the connection and the SuperNode asks again."""
        header = _header(errand.scope["headers"], NODE_KEY_HEADER)
        node = None if header is None else node_fingerprint(header)
        if response.status_code in _REFUSALS:
            said = f"the SuperLink refused {errand.route} with {response.status_code}"
            self._peers.say(errand.host, f"{said} to the node key {node or '(none that can be read)'}")
        headers = passed_on(response.headers.raw, RESPONSE_HEADERS)
        start = {"type": "http.response.start", "status": response.status_code, "headers": headers}
        try:
            errand.started = True
            await self._in_time(send(start))
            async for piece in response.aiter_raw():
                await self._in_time(send({"type": "http.response.body", "body": piece, "more_body": True}))
                errand.sent += len(piece)
            await self._in_time(send({"type": "http.response.body", "body": b"", "more_body": False}))
        except httpx.HTTPError as error:
            said = f"the SuperLink's answer to {errand.route} broke off ({type(error).__name__})"
            self._peers.say(errand.host, said)
        except TimeoutError:
            self._peers.say(
                errand.host, f"takes the answer to {errand.route} too slowly, {errand.sent} bytes so far"
            )
        else:
            if node is not None and response.is_success:
                self._meter.count(node, bytes_in=errand.body.size, bytes_out=errand.sent)
                if errand.route == ACTIVATE:
                    _LOG.info("%s: the node with the key %s is there", errand.host, node)

    async def _in_time(self, step: Awaitable[None]) -> None:
        async with asyncio.timeout(self._settings.idle_seconds):
            await step


def _asked(scope: Scope) -> str:
    """Method and path of a request as a log may hold them; never its query."""
    return f"{shown(scope['method'], longest=20)} {shown(scope['raw_path'])}"


def _header(headers: Headers, name: bytes) -> bytes | None:
    return next((value for known, value in headers if known == name), None)
