"""What uvicorn leaves to whoever uses it: connections that say nothing, say it slowly, or are too many.

uvicorn bounds the time between two requests, but not that of a request's headers, and it counts connections
only when one of them asks something. This is its own protocol on h11 with a timer and a count, and with our
log in place of its own; the parser is h11's. A test holds that the methods used here are where they were.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedtune.coordinator.gate.passage import answer
from fedtune.coordinator.gate.peers import LOGGER_NAME, Crowd, PeerLog
from fedtune.coordinator.gate.settings import GateSettings
from fedtune.coordinator.gate.throttle import peer_group

__all__ = ["GateProtocol"]

_HTTP_LOG: Final = logging.getLogger(f"{LOGGER_NAME}.http")
_HTTP_LOG.setLevel(logging.ERROR)  # its warnings name no peer; `send_400_response` writes one that does


async def _come_back(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a connection that is one too many."""
    await answer(503)(scope, receive, send)


class GateProtocol(H11Protocol):
    """One connection.

    Args:
        settings: How long the headers of a request may take.
        crowd: Counts connections.
        peers: Where refusals are written down.
        uvicorn_options: What uvicorn passes.
    """

    def __init__(
        self, *, settings: GateSettings, crowd: Crowd, peers: PeerLog, **uvicorn_options: Any
    ) -> None:
        super().__init__(**uvicorn_options)
        self.logger = _HTTP_LOG
        self._settings, self._crowd, self._peers = settings, crowd, peers
        self._host, self._served = "unknown", False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # it is asyncio's Transport, always
        if self.client is not None:
            self._host = self.client[0]
        self._served = self._crowd.enter(peer_group(self._host))
        if not self._served:
            self.app = _come_back
            self._peers.say(self._host, "has too many connections, or all peers together have")
            if self._crowd.full:
                transport.close()
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        self._crowd.leave(peer_group(self._host), served=self._served)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; where an answer is under way already, only end the connection."""
        self._peers.say(self._host, "sent something that is no HTTP")
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE} and self.cycle_is_over:
            headers = [(b"content-length", b"0"), (b"connection", b"close")]
            for event in (h11.Response(status_code=400, headers=headers, reason=b""), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def cycle_is_over(self) -> bool:
        """Whether no request of this connection waits for its answer."""
        return self.cycle is None or self.cycle.response_complete

    def _should_upgrade(self) -> bool:
        return False

    def _watch_head(self) -> None:
        """A request's headers are under way as long as h11 waits for the first event of the peer's turn."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self._settings.head_seconds, self._head_is_late)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        self._peers.say(self._host, f"sent no whole request in {self._settings.head_seconds:g} s")
        self.transport.close()
