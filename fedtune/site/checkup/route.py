"""The way to the server, as Flower's SuperNode goes it, written down step by step.

The SuperNode calls the server by httpx with httpx's defaults, so `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`
apply. The same library goes the same way here. What it tells of each step (httpcore's ``trace`` extension)
says how far it came: to a proxy, through it, through TLS, to an answer.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
from cryptography import x509

import fedtune
from fedtune.keys.certificates import parse_certificate
from fedtune.keys.private import UNREADABLE

__all__ = ["ASKED", "Address", "Stage", "Way", "dial", "parsed", "presented_certificate"]

TIMEOUT_SECONDS: Final = 10.0
ASKED: Final = "/v1/fleet/pull-messages"
"""What is asked for. Nobody signed the question, so a SuperLink refuses it before it does anything."""

_MEDIA_TYPE: Final = "application/protobuf"
_DIRECT: Final = "127.0.0.1"  # `fedtune.federation.processes.environment` keeps it from any proxy

Stage = Literal["proxy settings", "connection", "tunnel", "tls", "answer", "done"]
"""Where a way ended."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """A server's ``host:port``, taken apart; an IPv6 address has lost its brackets."""

    host: str
    port: int

    @classmethod
    def of(cls, text: str) -> Address:
        """Take an address apart that `fedtune.keys.names.address_flaws` has nothing against."""
        host, _, port = text.rpartition(":")
        return cls(host=host.removeprefix("[").removesuffix("]"), port=int(port))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(kw_only=True)
class Way:
    """How far a call came; filled in while it goes on.

    Attributes:
        server: Where it was to go.
        stage: What was tried last, or ``done``.
        first: Whom this machine connected to, or tried to: the server, or a proxy.
        tunnel: What the proxy answered when it was asked for a connection to the server: status and headers.
        tls_version: Such as ``TLSv1.3``; None if TLS was not agreed on.
        certificate: What was shown in it; None if nothing was, or nothing that can be read.
        sent: When the question left, in seconds since 1970 by this clock.
        received: When its answer was there, likewise.
        status: The answer's status.
        headers: Its headers, with names in lower case.
        error: Why it did not come further; None if it did.
    """

    server: Address
    stage: Stage = "proxy settings"
    first: Address | None = None
    tunnel: tuple[int, Mapping[str, str]] | None = None
    tls_version: str | None = None
    certificate: x509.Certificate | None = None
    sent: float = 0.0
    received: float = 0.0
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    error: Exception | None = None

    @property
    def proxy(self) -> Address | None:
        """The proxy, if the way leads through one."""
        return None if self.first in (None, self.server) else self.first

    def cause(self, kind: type[BaseException]) -> Any:
        """The innermost exception of a kind behind `error`, or None."""
        found, link = None, self.error
        while link is not None:
            found = link if isinstance(link, kind) else found
            link = link.__cause__ or link.__context__  # type: ignore[assignment]
        return found

    def reason(self) -> str:
        """Why it did not come further, in the words of the system."""
        inner = self.cause(OSError) or self.error
        text = " ".join(str(getattr(inner, "strerror", None) or inner).split())
        return f"{text or type(inner).__name__:.200}"


class _CertificateSeen(Exception):
    """Ends an unverified call as soon as the certificate is read: nothing may be sent through it."""


@dataclass(kw_only=True)
class _Recorder:
    """httpcore tells it of each step."""

    way: Way
    only_certificate: bool = False

    def __call__(self, event: str, info: Mapping[str, Any]) -> None:
        way = self.way
        name, _, outcome = event.rpartition(".")
        if name == "connection.connect_tcp" and outcome == "started":
            way.first = Address(host=info["host"], port=info["port"])
            way.stage = "connection"
        elif name == "connection.connect_tcp" and outcome == "complete":
            way.stage = "tls" if way.proxy is None else "tunnel"
        elif name == "proxy.start_tls" and outcome == "started":
            way.stage = "tls"
        elif name == self._last_tls and outcome == "complete":
            self._secured(info["return_value"])
        elif name == "http11.send_request_headers" and outcome == "started":
            way.sent = time.time()
        elif name == "http11.receive_response_headers" and outcome == "complete":
            self._answered(info["return_value"])

    @property
    def _last_tls(self) -> str:
        """TLS with the server; a proxy may itself be spoken to in TLS before that."""
        return "connection.start_tls" if self.way.proxy is None else "proxy.start_tls"

    def _secured(self, stream: Any) -> None:
        tls = stream.get_extra_info("ssl_object")
        self.way.tls_version = tls.version()
        self.way.certificate = parsed(tls.getpeercert(True))
        self.way.stage = "answer"
        if self.only_certificate:
            stream.close()
            raise _CertificateSeen

    def _answered(self, answer: tuple[Any, ...]) -> None:
        _, status, _, raw = answer
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
        if self.way.stage == "tunnel":
            self.way.tunnel = status, headers
            return
        self.way.received = time.time()
        self.way.status, self.way.headers = status, headers


def dial(server: Address, authority: str) -> Way:
    """Ask the server one question that changes nothing, as the SuperNode would reach it.

    Args:
        server: Where it is.
        authority: The certificate to trust, PEM.
    """
    # The same two calls as flwr.supercore.protobuf.client makes.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority)
    recorder = _Recorder(way=Way(server=server))
    _call(recorder, context)
    return recorder.way


def presented_certificate(server: Address) -> x509.Certificate | None:
    """Read the certificate that is shown there, without believing it; nothing is sent.

    Returns:
        The certificate; None if none was shown, or none that can be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    recorder = _Recorder(way=Way(server=server), only_certificate=True)
    _call(recorder, context)
    return recorder.way.certificate


def parsed(der: bytes | None) -> x509.Certificate | None:
    """The certificate that came in a handshake; None if it is none whose names and dates can be read."""
    with contextlib.suppress(*UNREADABLE):
        shown = parse_certificate(ssl.DER_cert_to_PEM_cert(der or b"").encode())
        # `cryptography` parses these when they are first asked for.
        for name in (shown.subject, shown.issuer):
            name.rfc4514_string()
        if shown.not_valid_before_utc <= shown.not_valid_after_utc:
            return shown
    return None


def _call(recorder: _Recorder, context: ssl.SSLContext) -> None:
    way = recorder.way
    try:
        with (
            httpx.Client(
                verify=context, timeout=TIMEOUT_SECONDS, trust_env=way.server.host != _DIRECT
            ) as client,
            client.stream(
                "POST",
                f"https://{way.server}{ASKED}",
                headers={"content-type": _MEDIA_TYPE, "user-agent": f"fedtune-doctor/{fedtune.__version__}"},
                extensions={"trace": recorder},
            ),
        ):
            way.stage = "done"
    except _CertificateSeen:
        pass
    except Exception as error:  # httpx's own, and what it raises for settings that it cannot read
        way.error = error
