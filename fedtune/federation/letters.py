"""Messages whose replies are not waited for: each is looked for from time to time, until its own deadline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedtune.federation.dialogue import MESSAGE_TYPES, Stage
from fedtune.federation.patience import bounded_pulls

__all__ = ["Letters"]

PULL_SECONDS = 60.0
"""Most that the arrays of one reply may take once it is announced, so that nobody holds up the others."""


@dataclass(kw_only=True)
class Letters:
    """Messages under way, at most one to each site.

    Guarantees:
        * A reply is given once.
        * A message is forgotten after its deadline: a reply that comes later is nobody's.

    Attributes:
        grid: Flower's way to the sites.
        timeout_seconds: How long a reply is looked for.
        clock: Seconds of a clock that never goes back.
    """

    grid: Grid
    timeout_seconds: float
    clock: Callable[[], float] = time.monotonic
    _sent: dict[str, tuple[str, float]] = field(default_factory=dict, init=False)

    def send(self, stage: Stage, site: str, node: int, content: RecordDict) -> bool:
        """Send a message to a site that has none under way; returns whether Flower took it."""
        ids = list(self.grid.push_messages([Message(content, node, MESSAGE_TYPES[stage])]))
        if not ids or not ids[0]:
            return False
        self._sent[site] = (ids[0], self.clock() + self.timeout_seconds)
        return True

    def replies(self) -> Iterator[tuple[str, Message]]:
        """Yield the replies that are there, those of the oldest messages first, each as it is fetched."""
        for site, (sent, _) in list(self._sent.items()):
            with bounded_pulls(min(PULL_SECONDS, self.timeout_seconds)):
                arrived = list(self.grid.pull_messages([sent]))
            if arrived:
                del self._sent[site]
                yield site, arrived[0]

    def forget(self, site: str) -> None:
        """Give up a site's message."""
        self._sent.pop(site, None)

    def overdue(self) -> tuple[str, ...]:
        """Forget the messages whose deadline is over, and return to whom they went."""
        now = self.clock()
        late = tuple(site for site, (_, deadline) in self._sent.items() if now >= deadline)
        for site in late:
            del self._sent[site]
        return late
