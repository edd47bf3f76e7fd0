"""A bound on how long Flower waits for the rest of a reply that has begun to arrive.

A reply is announced before its arrays are uploaded. Where a site dies in between, Flower's grid waits for
them for up to two hours, whatever the timeout of `Grid.send_and_receive` says, and holds back the replies of
all other sites. Within `bounded_pulls` it gives up after the given time, and the reply becomes an error.

What is Flower's and internal here is one name, held by a contract test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.superlink.grid import http_grid

__all__ = ["bounded_pulls"]


@contextmanager
def bounded_pulls(seconds: float) -> Iterator[None]:
    """Let a grid wait no longer than this for the arrays of a reply."""
    names = vars(http_grid)
    before = names["pull_objects"]
    names["pull_objects"] = partial(pull_objects, max_time=seconds)
    try:
        yield
    finally:
        names["pull_objects"] = before
