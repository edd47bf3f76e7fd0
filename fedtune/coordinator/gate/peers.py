"""Who is at the door: how many connections each address has, and what is written down about it."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Final

from fedtune.coordinator.gate.settings import GateSettings
from fedtune.coordinator.gate.throttle import Throttle, peer_group
from fedtune.secagg.fields import printable

__all__ = ["LOGGER_NAME", "Crowd", "PeerLog", "shown"]

LOGGER_NAME: Final = "fedtune.coordinator.gate"
_LOG: Final = logging.getLogger(LOGGER_NAME)

_LINES_PER_SECOND: Final = 0.2
_BURST_LINES: Final = 60
_LONGEST_SHOWN: Final = 120


def shown(raw: bytes | str, *, longest: int = _LONGEST_SHOWN) -> str:
    """Something that a peer sent, as a log may hold it: bounded, of printable ASCII, without line breaks."""
    text = raw if isinstance(raw, str) else raw[: longest + 1].decode("ascii", "backslashreplace")
    cut = printable(text[:longest].encode("ascii", "backslashreplace").decode("ascii"), longest=longest)
    return f"{cut}..." if len(text) > longest else cut


class PeerLog:
    """Warnings about peers; so many for each, so that a flood of requests is no flood of lines.

    What is not written is counted, and the number stands in the next line about the same peer.
    """

    def __init__(self, throttle: Throttle) -> None:
        self._lines = throttle

    @classmethod
    def of(cls, settings: GateSettings) -> PeerLog:
        return cls(Throttle(rate=_LINES_PER_SECOND, burst=_BURST_LINES, peers=settings.max_peers))

    def say(self, host: str, said: str) -> None:
        """Write one line: the peer's address, and what it did."""
        taken = self._lines.take(peer_group(host))
        if taken.allowed:
            missing = f" (and {taken.refused} lines about it that are not written)" if taken.refused else ""
            _LOG.warning("%s: %s%s", host, said, missing)


class Crowd:
    """How many connections there are, over all and for each peer.

    Args:
        most: Connections that are served at once.
        most_per_peer: Likewise, of one peer.
    """

    def __init__(self, *, most: int, most_per_peer: int) -> None:
        self._most, self._most_per_peer = most, most_per_peer
        self._served: Counter[str] = Counter()
        self._waiting = 0

    def enter(self, group: str) -> bool:
        """Count a connection, and say whether it is served; `leave` follows in either case."""
        if self._served.total() >= self._most or self._served[group] >= self._most_per_peer:
            self._waiting += 1
            return False
        self._served[group] += 1
        return True

    @property
    def full(self) -> bool:
        """Whether even those that are only told to come back are as many as those that are served may be."""
        return self._waiting > self._most

    def leave(self, group: str, *, served: bool) -> None:
        """A connection ended; `served` is what `enter` said."""
        if not served:
            self._waiting -= 1
            return
        self._served[group] -= 1
        if self._served[group] == 0:
            del self._served[group]
