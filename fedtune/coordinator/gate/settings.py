"""Everything that can be set at the gate, with units, and what is wrong with a value."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Final

from fedtune.coordinator.problems import problem
from fedtune.errors import FederationError
from fedtune.secagg.fields import printable

__all__ = ["GateSettings", "ListenAddress", "parse_address"]

_ADDRESS: Final = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<v4>[0-9.]+)):(?P<port>0|[1-9][0-9]{0,4})")


@dataclass(frozen=True, kw_only=True)
class ListenAddress:
    """An IP address and a TCP port; port 0 is any free one."""

    host: str
    port: int

    @property
    def is_v6(self) -> bool:
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_v6 else f"{self.host}:{self.port}"


def parse_address(text: str) -> ListenAddress:
    """Read ``192.0.2.7:9092`` or ``[2001:db8::7]:9092``.

    Raises:
        ValueError: It is neither.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or int(match["port"]) >= 2**16:
        raise ValueError(f"{printable(text)!r} is no address such as 0.0.0.0:9092 or [::]:9092")
    kind = ipaddress.IPv4Address if match["v4"] else ipaddress.IPv6Address
    return ListenAddress(host=str(kind(match["v4"] or match["v6"])), port=int(match["port"]))


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """What the gate does.

    Raises:
        FederationError: FT651 with every value that cannot be.
    """

    listen: tuple[str, ...]
    """Where sites connect: IP addresses with ports, as ``0.0.0.0:9092`` and ``[::]:9092``."""

    superlink: str
    """Where the SuperLink listens: an address of loopback, as ``127.0.0.1:9091``."""

    certificate: Path
    """The coordinator's server certificate, PEM; shown to sites."""

    key: Path
    """Its private key, PEM, mode 0600."""

    authority: Path
    """The coordinator's ``ca.pem``; the SuperLink's own certificate is checked against it."""

    traffic_file: Path | None = None
    """Where traffic is written, as JSON, at most every 5 s; None: nowhere."""

    max_body_bytes: int = 64 * 2**20
    """Most bytes of a request's body. Flower cuts arrays into chunks of 5 MiB, one to a request; anything
    else travels whole. The SuperLink holds a body in memory before it looks at who sent it."""

    max_head_bytes: int = 16 * 2**10
    """Most bytes of a request's line and headers together; Flower's have about 1 KiB."""

    requests_per_second: float = 200.0
    """Requests a second that one address may make in the long run; an IPv6 address stands for its /64."""

    burst_requests: int = 2000
    """Requests that one address may make at once: a site fetches each tensor of an adapter with two."""

    max_peers: int = 4096
    """Addresses whose requests are counted; beyond that, the one not seen for longest is forgotten."""

    max_connections: int = 256
    """Connections that are served at once, over all addresses."""

    max_connections_per_peer: int = 64
    """Connections that are served at once for one address; a site uses up to some twenty."""

    handshake_seconds: float = 10.0
    """Longest that a TLS handshake may take."""

    head_seconds: float = 10.0
    """Longest from the handshake, or from the first byte of a later request, to the end of its headers."""

    keep_alive_seconds: int = 30
    """How long a connection may rest between two requests."""

    idle_seconds: float = 30.0
    """Longest that the next piece of a body may take, either way."""

    body_seconds: float = 600.0
    """Longest that the whole body of a request may take."""

    superlink_seconds: float = 25.0
    """Longest wait for the SuperLink; Flower's client waits 30 s for an answer."""

    def __post_init__(self) -> None:
        flaws = [problem("FT651", said, where=f"gate.{name}") for name, said in self._flaws()]
        if flaws:
            raise FederationError(flaws)

    @property
    def addresses(self) -> tuple[ListenAddress, ...]:
        """`listen`, parsed."""
        return tuple(map(parse_address, self.listen))

    def _flaws(self) -> list[tuple[str, str]]:
        found = []
        if not self.listen:
            found.append(("listen", "the gate listens nowhere"))
        for name, text in [*(("listen", each) for each in self.listen), ("superlink", self.superlink)]:
            try:
                address = parse_address(text)
            except ValueError as error:
                found.append((name, str(error)))
                continue
            if name == "superlink":
                if not ipaddress.ip_address(address.host).is_loopback:
                    found.append((name, f"{text} is not on loopback: whoever reaches it controls the runs"))
                if address.port == 0:
                    found.append((name, f"{text} names no port"))
        return found + self._numbers()

    def _numbers(self) -> list[tuple[str, str]]:
        found = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type in {"int", "float"}:
                # bool is an int, and nobody means it as a number.
                if isinstance(value, bool) or not isinstance(value, (int, float)):
                    found.append((field.name, f"a number is needed, got {printable(repr(value))}"))
                elif field.type == "int" and not isinstance(value, int):
                    found.append((field.name, f"a whole number is needed, got {value!r}"))
                elif not (value > 0 and math.isfinite(value)):
                    found.append((field.name, f"a number above 0 is needed, got {value!r}"))
        return found
