"""``/health`` and ``/metrics`` of a site's daemon, on loopback alone.

Any web page that a person opens on this machine can make a browser send requests to loopback, under a name of
the page's own choosing (DNS rebinding). So a request is answered only if it names loopback as its host.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import TCPServer, ThreadingMixIn
from typing import Any, Final

import psutil

from fedtune.errors import MachineError, Problem
from fedtune.site.health_state import SiteState
from fedtune.site.health_text import METRICS_TYPE, health_fields, metrics_text

__all__ = ["serve_health"]

logger = logging.getLogger(__name__)

_SECONDS_TO_WAIT: Final = 5
_MOST_AT_ONCE: Final = 8
_OWN_NAME: Final = re.compile(r"(?i:localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?")


@contextmanager
def serve_health(state: SiteState, *, port: int, host: str = "127.0.0.1") -> Iterator[tuple[str, int]]:
    """Answer from threads of this process until the block is left.

    Args:
        state: What is told.
        port: Where to listen; 0 for any that is free.
        host: A loopback address.

    Yields:
        Address and port on which it listens.

    Raises:
        MachineError: FT860, the address is not on loopback; FT861, nothing can listen there.
    """
    server = _listening(state, host, port)
    thread = threading.Thread(target=server.serve_forever, name="health", daemon=True)
    thread.start()
    try:
        yield host, server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listening(state: SiteState, host: str, port: int) -> _Server:
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise MachineError(
            Problem(
                code="FT860",
                what=f"health and metrics are for this machine alone, and {host!r} is no loopback address",
                where="the site's settings, health",
                fix="set the address to 127.0.0.1 or ::1; let a monitoring agent on this machine ask there",
            )
        )
    try:
        return _Server((host, port), state)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise MachineError(
            Problem(
                code="FT861",
                what=f"health and metrics cannot be served: {reason}",
                where=f"{host}, port {port}",
                fix="set another port, or stop the program that listens there",
            )
        ) from error


class _Server(ThreadingMixIn, TCPServer):
    """A thread for each request, and not more than a few at once."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, address: tuple[str, int], state: SiteState) -> None:
        self.state = state
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._free = threading.BoundedSemaphore(_MOST_AT_ONCE)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # the machine gives no more threads
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client went away. The inherited one prints to stderr."""
        logger.debug("a request for health or metrics was not answered")


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD of two paths; a connection is for one request."""

    server: _Server
    timeout = _SECONDS_TO_WAIT
    server_version = "fedtune"
    sys_version = ""

    def do_GET(self) -> None:
        named = self.headers.get_all("Host", [])
        if len(named) != 1 or not _OWN_NAME.fullmatch(named[0]):
            self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
            return
        now = self.server.state.snapshot()
        path = self.path.partition("?")[0]
        if path == "/health":
            well = now.status == "ok"
            status = HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE
            self._send(status, "application/json", json.dumps(health_fields(now)) + "\n")
        elif path == "/metrics":
            resident = psutil.Process().memory_info().rss
            self._send(HTTPStatus.OK, METRICS_TYPE, metrics_text(now, resident_bytes=resident))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Say no more than the status: what http.server adds quotes the request."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._send(status, "text/plain; charset=utf-8", f"{status.phrase}\n")

    def log_message(self, format: str, *args: Any) -> None:
        """What is asked here is nobody's concern."""

    def _send(self, status: HTTPStatus, kind: str, text: str) -> None:
        body = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
