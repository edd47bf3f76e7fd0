"""The gate as a thread of the coordinator's process: start, stop, and what went wrong."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, cast

import httpx
import uvicorn

from fedtune.coordinator.gate.passage import Passage
from fedtune.coordinator.gate.peers import LOGGER_NAME, Crowd, PeerLog
from fedtune.coordinator.gate.protocol import GateProtocol
from fedtune.coordinator.gate.settings import GateSettings, ListenAddress
from fedtune.coordinator.gate.tls import towards_sites, towards_superlink
from fedtune.coordinator.gate.traffic import Traffic, TrafficMeter, read_traffic, write_traffic
from fedtune.coordinator.problems import problem, refusal
from fedtune.errors import FederationError, FedtuneError, Problem
from fedtune.keys.certificates import utc_now

__all__ = ["Gate"]

_LOG: Final = logging.getLogger(LOGGER_NAME)

TRAFFIC_SECONDS: Final = 5.0
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 5
_BACKLOG: Final = 128
# Flower's server closes a connection that rests for 5 s: ours are not used again when that is near.
_UPSTREAM_REST_SECONDS: Final = 2.0


class _Loop(asyncio.SelectorEventLoop):
    """asyncio's own event loop, with a bound on TLS handshakes, which uvicorn has no option for."""

    def __init__(self, handshake_seconds: float) -> None:
        super().__init__()
        self._handshake_seconds = handshake_seconds

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:
        bounds = {"ssl_handshake_timeout": self._handshake_seconds, "ssl_shutdown_timeout": _STOP_SECONDS}
        return await super().create_server(*arguments, **(options | bounds))


class Gate:
    """The one door of a coordinator that sites reach.

    It runs in a thread; `start` returns when sites can connect, `check` says later whether they still can.

    Args:
        settings: What it does.
    """

    def __init__(self, settings: GateSettings) -> None:
        self.settings = settings
        self._meter = TrafficMeter()
        self._thread: threading.Thread | None = None
        self._server: uvicorn.Server | None = None
        self._died: BaseException | None = None
        self.addresses: tuple[ListenAddress, ...] = ()
        """Where it listens, once it does; a port 0 of the settings is a number here."""

    def start(self) -> None:
        """Listen, and pass requests on.

        Raises:
            FederationError: FT630 or FT631, the key or a certificate cannot be used; FT650, an address cannot
                be listened on; FT652, it ended at once.
        """
        if self._thread is not None:
            raise RuntimeError("a gate is started once")
        logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for each request
        certificate, upstream = towards_sites(self.settings, utc_now()), towards_superlink(self.settings)
        self._meter = TrafficMeter(self._earlier())
        sockets = _listen(self.settings.addresses)
        self.addresses = tuple(
            ListenAddress(host=each.getsockname()[0], port=each.getsockname()[1]) for each in sockets
        )
        self._server = self._uvicorn(certificate, upstream)
        self._thread = threading.Thread(target=self._run, args=(sockets,), name="gate", daemon=True)
        self._thread.start()
        self._wait_until_started(self._server, self._thread)
        for address in self.addresses:
            said = "sites connect to %s; Fleet requests go on to %s"
            _LOG.info(said, str(address), self.settings.superlink)

    def stop(self) -> None:
        """Take no more connections, give requests 5 s to end, and write the traffic. May be repeated."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._thread.join()

    def check(self) -> None:
        """Say if sites can no longer connect.

        Raises:
            FederationError: FT652, it has ended, and why.
        """
        if self._thread is None or not self._thread.is_alive():
            why = f"{type(self._died).__name__}: {self._died}" if self._died else "it was stopped"
            where = ", ".join(map(str, self.addresses))
            raise refusal("FT652", f"the gate has ended: {why:.200}", where=where or "the gate")

    def traffic(self) -> Traffic:
        """What each node sent and got so far."""
        return self._meter.snapshot()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _earlier(self) -> Traffic | None:
        """Where counting stopped; a file that cannot be read is no reason to keep sites out."""
        if self.settings.traffic_file is None:
            return None
        try:
            return read_traffic(self.settings.traffic_file)
        except FederationError as error:
            _LOG.warning("traffic is counted from 0: %s", error.problems[0].what)
            return None

    def _uvicorn(self, certificate: ssl.SSLContext, upstream: ssl.SSLContext) -> uvicorn.Server:
        settings, peers = self.settings, PeerLog.of(self.settings)
        crowd = Crowd(most=settings.max_connections, most_per_peer=settings.max_connections_per_peer)
        self._client = httpx.AsyncClient(
            verify=upstream,
            trust_env=False,
            follow_redirects=False,
            timeout=settings.superlink_seconds,
            limits=httpx.Limits(
                max_connections=settings.max_connections, keepalive_expiry=_UPSTREAM_REST_SECONDS
            ),
            headers={"user-agent": "fedtune-gate", "accept-encoding": "identity"},
        )
        protocol = partial(GateProtocol, settings=settings, crowd=crowd, peers=peers)
        config = uvicorn.Config(
            Passage(settings, self._client, self._meter, peers),
            interface="asgi3",
            http=cast(Any, protocol),
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # a peer is who it is, whatever a header says
            server_header=False,
            date_header=True,  # by which `fedtune client doctor` finds a clock that Flower would refuse
            backlog=_BACKLOG,
            timeout_keep_alive=settings.keep_alive_seconds,
            timeout_graceful_shutdown=_STOP_SECONDS,
            ssl_context_factory=lambda *_: certificate,
            h11_max_incomplete_event_size=settings.max_head_bytes,
        )
        return uvicorn.Server(config)

    def _run(self, sockets: list[socket.socket]) -> None:
        try:
            with asyncio.Runner(loop_factory=partial(_Loop, self.settings.handshake_seconds)) as runner:
                runner.run(self._serve(sockets))
        except BaseException as error:
            self._died = error
            _LOG.exception("the gate has ended")
        finally:
            for each in sockets:
                each.close()

    async def _serve(self, sockets: list[socket.socket]) -> None:
        if self._server is None:
            raise TypeError("the server is made before its thread")
        async with self._client:
            writing = asyncio.create_task(self._write_traffic())
            try:
                await self._server.serve(sockets=sockets)
            finally:
                writing.cancel()
                await asyncio.to_thread(self._write_once, None)

    async def _write_traffic(self) -> None:
        written: Traffic | None = None
        while True:
            await asyncio.sleep(TRAFFIC_SECONDS)
            written = await asyncio.to_thread(self._write_once, written)

    def _write_once(self, written: Traffic | None) -> Traffic | None:
        """Write the traffic unless it is as it was; what is in the file then."""
        now = self._meter.snapshot()
        if self.settings.traffic_file is None or now == written:
            return written
        try:
            write_traffic(self.settings.traffic_file, now)
        except FedtuneError as error:
            _LOG.warning("traffic is not written: %s", error.problems[0].what)
            return written
        return now

    def _wait_until_started(self, server: uvicorn.Server, thread: threading.Thread) -> None:
        waited = threading.Event()
        for _ in range(int(_START_SECONDS / 0.01)):
            if server.started:
                return
            if not thread.is_alive():
                break
            waited.wait(0.01)
        self.stop()
        self.check()


def _listen(addresses: tuple[ListenAddress, ...]) -> list[socket.socket]:
    """Bind every address, or none.

    Raises:
        FederationError: FT650 with each address that cannot be bound.
    """
    sockets: list[socket.socket] = []
    problems: list[Problem] = []
    for address in addresses:
        try:
            sockets.append(_bound(address))
        except OSError as error:
            problems.append(problem("FT650", f"cannot listen: {error.strerror}", where=str(address)))
    if problems:
        for each in sockets:
            each.close()
        raise FederationError(problems)
    return sockets


def _bound(address: ListenAddress) -> socket.socket:
    family = socket.AF_INET6 if address.is_v6 else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named: without it each answer takes 40 ms more.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address.is_v6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((address.host, address.port))
        bound.listen(_BACKLOG)
    except BaseException:
        bound.close()
        raise
    return bound
