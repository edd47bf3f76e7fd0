"""Which requests are Flower's Fleet API, byte for byte, and what of them is passed on.

Nothing of a request's path is passed on: the SuperLink is asked for one of these routes as it is spelled
here. A test compares the list with that of the installed flwr.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

__all__ = [
    "ACTIVATE",
    "FLEET_ROUTES",
    "NODE_KEY_HEADER",
    "REQUEST_HEADERS",
    "RESPONSE_HEADERS",
    "fleet_route",
    "passed_on",
]

ACTIVATE: Final = "/v1/fleet/activate-node"

FLEET_ROUTES: Final = (
    "/v1/fleet/register-node",
    ACTIVATE,
    "/v1/fleet/deactivate-node",
    "/v1/fleet/unregister-node",
    "/v1/fleet/send-node-heartbeat",
    "/v1/fleet/pull-messages",
    "/v1/fleet/push-messages",
    "/v1/fleet/get-run",
    "/v1/fleet/get-fab",
    "/v1/fleet/push-object",
    "/v1/fleet/pull-object",
    "/v1/fleet/confirm-message-received",
)
"""The Fleet API of flwr 1.41; each is asked by POST."""

NODE_KEY_HEADER: Final = b"flwr-public-key"

REQUEST_HEADERS: Final = frozenset(
    {
        b"accept",
        b"content-type",
        NODE_KEY_HEADER,
        b"flwr-signature",
        b"flwr-timestamp",
        b"flwr-package-name",
        b"flwr-package-version",
        b"flwr-component-name",
    }
)
"""What Flower's Fleet client says of itself and proves; no other header reaches the SuperLink."""

RESPONSE_HEADERS: Final = frozenset(
    {b"content-type", b"content-length", b"flwr-version-incompatibility-message"}
)

_BY_TARGET: Final = {route.encode("ascii"): route for route in FLEET_ROUTES}

Headers = Iterable[tuple[bytes, bytes]]


def fleet_route(method: str, target: bytes, query: bytes, headers: Headers) -> str | None:
    """The Fleet route that a request asks for, or None if it is anything else.

    Args:
        method: As sent; methods are case-sensitive.
        target: The path as sent, nothing decoded.
        query: What follows a question mark.
        headers: Names in lower case.

    Returns:
        One of `FLEET_ROUTES`. None for another method, any other spelling of a path, a query, a request to
        speak another protocol, and for a header that is passed on but stands there twice: two readers of such
        a request may believe different ones.
    """
    if method != "POST" or query:
        return None
    names = [name for name, _ in headers]
    if b"upgrade" in names or any(names.count(name) > 1 for name in REQUEST_HEADERS):
        return None
    return _BY_TARGET.get(target)


def passed_on(headers: Headers, allowed: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """Those headers that are on a list."""
    return [(name.lower(), value) for name, value in headers if name.lower() in allowed]
