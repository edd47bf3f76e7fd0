"""A bound on how long Flower waits for the rest of a reply that has begun to arrive.

A reply is announced before its arrays are uploaded. Where a site dies in between, Flower's grid waits for
them for up to two hours, whatever the timeout of `Grid.send_and_receive` says, and holds back the replies of
all other sites. Within `bounded_pulls` it gives up after the given time, and the reply becomes an error.

What is Flower's and internal here is one name, held by a contract test.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

__all__ = ["GRID_MODULE", "PULL", "bounded_pulls"]

GRID_MODULE, PULL = "flwr.superlink.grid.http_grid", "pull_objects"
"""Flower's grid over a network, and the function by which it fetches a reply's arrays."""


@contextmanager
def bounded_pulls(seconds: float) -> Iterator[None]:
    """Let a grid wait no longer than this for the arrays of a reply."""
    module = sys.modules.get(GRID_MODULE)
    if module is None:  # then no such grid exists in this process; loading it would take 0.8 s
        yield
        return
    names = vars(module)
    before = names[PULL]
    names[PULL] = partial(before, max_time=seconds)
    try:
        yield
    finally:
        names[PULL] = before
