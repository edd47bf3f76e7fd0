"""Whether the server can be reached: its name, the connection, and a proxy on the way."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from typing import Final

from fedtune.secagg.fields import printable
from fedtune.site.checkup.route import Address, Way
from fedtune.site.findings import Finding, failed, ok

__all__ = ["connection", "proxy", "resolution"]

_DIRECT_SECONDS: Final = 3.0
_BASIC: Final = re.compile(r"\bbasic\b", re.IGNORECASE)


def resolution(way: Way) -> Finding:
    """Which addresses the server's name stands for."""
    host = way.server.host
    try:
        found = socket.getaddrinfo(host, way.server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        if way.proxy is not None:
            return ok(f"{host} is not known here, which does not matter: the proxy looks it up")
        return failed(
            "FT842",
            f"the name {host} cannot be resolved: {error.strerror}",
            fix="ask the network team to let this machine resolve the name; if the name is wrong, ask the "
            "coordinator for a bundle with the right one",
        )
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    return ok(f"{host} is {', '.join(addresses)}")


def connection(way: Way) -> Finding:
    """Whether a connection can be opened: to the server, or to the proxy that the environment names."""
    if way.stage == "proxy settings":
        return failed(
            "FT844",
            f"the proxy that the environment names cannot be used: {way.reason()}",
            fix="set HTTPS_PROXY to http://HOST:PORT, and no SOCKS proxy; or set NO_PROXY="
            f"{way.server.host} if the server can be reached without a proxy",
        )
    if way.stage != "connection":
        what = f"the proxy {way.proxy}, which the environment names," if way.proxy else str(way.server)
        return ok(f"{what} accepts connections")
    if way.proxy is not None:
        return failed(
            "FT844",
            f"the proxy {way.proxy} that the environment names cannot be reached: {way.reason()}",
            fix=f"correct HTTPS_PROXY in the service's environment{_or_directly(way)}",
        )
    if way.cause(socket.gaierror) is not None:
        return failed(
            "FT842",
            f"no connection to {way.server}: its name cannot be resolved",
            fix="mend the check above",
        )
    return failed(
        "FT843",
        f"{way.server} cannot be reached: {way.reason()}",
        fix=f"ask the network team to allow outgoing TCP to {way.server}, or set HTTPS_PROXY if a proxy "
        "leads out; ask the coordinator whether the server runs",
    )


def proxy(way: Way) -> Iterator[Finding]:
    """What the proxy says to a connection to the server; nothing without one, or if it was not reached."""
    if way.proxy is None or way.stage == "connection":
        return
    if way.stage != "tunnel":
        yield ok(f"the proxy {way.proxy} lets connections to {way.server} pass")
    elif way.tunnel is None:
        yield failed(
            "FT844",
            f"{way.proxy} does not answer as a proxy does: {way.reason()}",
            fix=f"correct HTTPS_PROXY in the service's environment{_or_directly(way)}",
        )
    elif way.tunnel[0] == 407:
        yield _authentication(way, way.tunnel[1].get("proxy-authenticate", ""))
    else:
        yield failed(
            "FT846",
            f"the proxy {way.proxy} refuses a connection to {way.server}: it answers CONNECT with "
            f"{way.tunnel[0]}",
            fix=f"ask the network team to allow CONNECT to {way.server}{_or_directly(way)}",
        )


def _authentication(way: Way, offered: str) -> Finding:
    ways_in = f" ({printable(offered[:80])})" if offered else ""
    what = f"the proxy {way.proxy} demands authentication{ways_in}"
    if offered and not _BASIC.search(offered):
        fix = (
            "only user name and password (Basic) can be given: ask the network team to let this machine pass "
            f"to {way.server} without, or to offer Basic{_or_directly(way)}"
        )
    else:
        fix = (
            f"set HTTPS_PROXY=http://USER:PASSWORD@{way.proxy} in the service's environment, in a file that "
            "only root can read; write %40 for @ and %3A for : in the password"
        )
    return failed("FT845", what, fix=fix)


def _or_directly(way: Way) -> str:
    """The advice to leave the proxy out, where that would work."""
    if not _reachable(way.server):
        return ""
    return f"; {way.server} can be reached without it: add {way.server.host} to NO_PROXY"


def _reachable(server: Address) -> bool:
    """Whether somebody accepts connections there."""
    try:
        with socket.create_connection((server.host, server.port), timeout=_DIRECT_SECONDS):
            return True
    except OSError:
        return False
