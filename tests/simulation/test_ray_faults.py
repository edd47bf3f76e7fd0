"""Flower's engine on Ray: a dead actor costs its client's work of a round, and a cluster's machines share."""

from __future__ import annotations

import inspect
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
from flwr.simulation.ray_transport.ray_actor import BasicActorPool
from ray.exceptions import RayActorError

import fedtune
from fedtune.federation.actors import dead_actors_replaced
from fedtune.observability.events import ClientFailed, ClientTrained, Event, RoundFinished, RoundStarted

Overrides = Callable[..., list[str]]


class Pool(BasicActorPool):
    """Flower's pool with actors that are numbers, and no Ray."""

    def __init__(self, actors: int) -> None:
        self.pool = list(range(actors))
        self.num_actors = actors
        self._future_to_actor = {}
        self.create_actor_fn = lambda: 99


def test_a_dead_actor_is_replaced_and_a_living_one_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    replies: dict[str, Any] = {
        "good": ("cid", "reply", "context"),
        "bad": ValueError(),
        "dead": RayActorError(),
    }

    def get(future: str) -> Any:
        if isinstance(replies[future], Exception):
            raise replies[future]
        return replies[future]

    monkeypatch.setattr("flwr.simulation.ray_transport.ray_actor.ray.get", get)
    backend = RayBackend.__new__(RayBackend)
    backend.pool, backend.app_fn = Pool(1), lambda: None
    for future, idle in (("good", 0), ("bad", 0), ("dead", 99)):
        monkeypatch.setattr(
            Pool,
            "submit",
            lambda pool, *_, of=future: pool._future_to_actor.update({of: pool.pool.pop()}) or of,
        )
        with dead_actors_replaced():
            if future == "good":
                assert backend.process_message(None, _Context()) == ("reply", "context")
            else:
                with pytest.raises(type(replies[future])):
                    backend.process_message(None, _Context())
        assert backend.pool.pool == [idle]


class _Context:
    node_config = {"partition-id": 0}  # noqa: RUF012


def test_what_is_replaced_is_there_and_is_put_back() -> None:
    before = BasicActorPool.fetch_result_and_return_actor_to_pool
    assert list(inspect.signature(before).parameters) == ["self", "future"]
    with dead_actors_replaced():
        assert BasicActorPool.fetch_result_and_return_actor_to_pool is not before
    assert BasicActorPool.fetch_result_and_return_actor_to_pool is before


def actors(*, at_work: bool = False) -> list[psutil.Process]:
    """This process's own actors, or those that are answering a message."""
    title = "ray::ClientAppActor.run" if at_work else "ray::ClientAppActor"
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if (process.cmdline() or [""])[0].startswith(title):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.e2e
def test_a_worker_that_is_killed_costs_its_clients_work_of_the_round_and_not_the_run(
    tiny_overrides: Overrides,
) -> None:
    events: list[Event] = []
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            for process in actors(at_work=True):
                os.kill(process.pid, signal.SIGKILL)
                killed.append(process.pid)
                return
            time.sleep(0.005)

    def observe(event: Event) -> None:
        events.append(event)
        if isinstance(event, RoundStarted) and event.round == 1 and not killed:
            threading.Thread(target=kill_one, daemon=True).start()

    settings = {"backend": "ray", "federation__rounds": 2, "federation__min_replies": 1}
    overrides = tiny_overrides(**settings, federation__round_attempts=1, training__steps_per_round=60)
    run = fedtune.simulate(overrides, observers=[observe])
    assert run.summary["status"] == "completed"
    assert killed
    failed = [event for event in events if isinstance(event, ClientFailed)]
    assert [(event.round, event.code) for event in failed] == [(1, "FT605")]
    lost = failed[0].client
    trained = {(event.round, event.client) for event in events if isinstance(event, ClientTrained)}
    assert (1, lost) not in trained
    assert (2, lost) in trained


@pytest.mark.slow
@pytest.mark.e2e
def test_every_machine_of_a_cluster_takes_part_and_the_result_is_the_same(tiny_overrides: Overrides) -> None:
    from ray.cluster_utils import Cluster

    alone = fedtune.simulate(tiny_overrides(name="alone", training__threads=1))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        machines: set[int] = set()

        def observe(event: Event) -> None:
            if isinstance(event, ClientTrained | RoundFinished):
                machines.update(actor.ppid() for actor in actors())

        overrides = tiny_overrides(
            name="cluster", backend="ray", backend__address=cluster.address, training__threads=1
        )
        run = fedtune.simulate(overrides, observers=[observe])
        assert len(machines) == 2
    finally:
        cluster.shutdown()
    assert run.summary["status"] == "completed"
    assert run.summary["held_out_loss"] == alone.summary["held_out_loss"]
