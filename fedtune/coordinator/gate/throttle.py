"""How often one address may do something: a token bucket for each, in a table of bounded size."""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Taken", "Throttle", "peer_group"]


class Taken(NamedTuple):
    """Whether something may be done, and how often it was refused since it last might: itself included."""

    allowed: bool
    refused: int


@dataclass
class _Bucket:
    tokens: float
    at: float
    refused: int = 0


class Throttle:
    """A token bucket for each peer (Turner, "New directions in communications", 1986).

    Guarantees: a peer that is remembered does a thing at most ``burst + rate * t`` times in any ``t``
    seconds; no more than ``peers`` buckets are held. A peer that was forgotten because others came begins
    with a full bucket.

    Args:
        rate: Tokens that a bucket gains in a second.
        burst: Tokens that it holds, and begins with.
        peers: Buckets that are kept at a time.
        clock: Seconds that never go back.
    """

    def __init__(
        self, *, rate: float, burst: int, peers: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._peers, self._clock = rate, burst, peers, clock
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, peer: str) -> Taken:
        """Take one token of a peer's, if it has one."""
        now = self._clock()
        bucket = self._buckets.setdefault(peer, _Bucket(tokens=self._burst, at=now))
        self._buckets.move_to_end(peer)
        if len(self._buckets) > self._peers:
            self._buckets.popitem(last=False)
        bucket.tokens = min(self._burst, bucket.tokens + (now - bucket.at) * self._rate)
        bucket.at = now
        if bucket.tokens < 1:
            bucket.refused += 1
            return Taken(False, bucket.refused)
        bucket.tokens -= 1
        refused, bucket.refused = bucket.refused, 0
        return Taken(True, refused)


def peer_group(host: str) -> str:
    """The name under which an address is counted: an IPv4 address itself, an IPv6 address its /64.

    Whoever has one IPv6 address has the 2^64 beside it as well.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
