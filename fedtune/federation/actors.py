"""Another actor in the place of one that died, on Flower's simulation engine.

Flower's pool takes an actor whose process was killed back as idle, and each message that is handed to it
fails at once: since it is idle first, it gets most of them. With `dead_actors_replaced` the message that it
was at is lost, as Flower says with an error in the reply's place, and a new actor takes the next one.

What is Flower's and internal here is one method, held by a contract test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["dead_actors_replaced"]


@contextmanager
def dead_actors_replaced() -> Iterator[None]:
    """Let Flower's pool, in whose process the ServerApp runs, start an actor for each that died."""
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool  # noqa: PLC0415  # there with Ray alone
    from ray.exceptions import RayActorError  # noqa: PLC0415

    pools: Any = BasicActorPool
    before = pools.fetch_result_and_return_actor_to_pool

    def fetch(pool: Any, future: Any) -> Any:
        try:
            return before(pool, future)
        except RayActorError:
            pool._future_to_actor[future] = pool.create_actor_fn()  # which the caller puts back as idle
            raise

    pools.fetch_result_and_return_actor_to_pool = fetch
    try:
        yield
    finally:
        pools.fetch_result_and_return_actor_to_pool = before
