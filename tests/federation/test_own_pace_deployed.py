"""FedBuff with sites that answer when they do: the late count less, and the silent are named."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from support.quadratic import SPEC, quadratic_client
from support.scripted_grid import Clock

from fedtune.aggregation.registry import aggregator
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.errors import FederationError
from fedtune.federation.asynchronous import AsynchronousFederation
from fedtune.federation.checkpoint import Checkpoint, load_checkpoint
from fedtune.federation.wire import TrainRequest
from fedtune.models.adapter import Adapter, initial_adapter
from fedtune.observability.events import (
    ClientFailed,
    ClientTrained,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    RunStarted,
    effective_events,
    read_events,
)
from fedtune.observability.run_directory import RunDirectory
from fedtune.simulation.grid import InProcessGrid

NEVER = 1e12


class Killed(BaseException):
    """As a power cut."""


@dataclass
class Slow:
    """How long each node takes for a training, and until when it is connected."""

    clock: Clock = field(default_factory=Clock)
    seconds: dict[int, float] = field(default_factory=dict)
    offline: set[int] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)


class SlowGrid(InProcessGrid):
    """Replies to training can be pulled once their node's time has passed on the clock."""

    def __init__(self, slow: Slow, clients: int, asked: Callable[[int, TrainRequest], None]) -> None:
        super().__init__(quadratic_client(asked), clients)
        self._slow = slow
        self._ready: dict[str, tuple[float, str]] = {}

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if node not in self._slow.offline]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        pushed = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self._slow.refused:
                pushed.append(None)
                continue
            (inner,) = super().push_messages([message])
            name = uuid.uuid4().hex
            self._ready[name] = (self._slow.clock() + self._slow.seconds.get(node, 1.0), inner)
            pushed.append(name)
        return pushed  # type: ignore[return-value]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        for name in message_ids:
            if name not in self._ready:  # as `send_and_receive` asks
                yield from super().pull_messages([name])
            elif self._ready[name][0] <= self._slow.clock():
                yield from super().pull_messages([self._ready.pop(name)[1]])


def config(**federation: object) -> Config:
    composed = compose(
        ["backend=deployment", "secagg=off", "asynchronous=fedbuff", "evaluation.every_rounds=0"]
    )
    settings = {"rounds": 4, "round_timeout_seconds": 600.0, "join_timeout_seconds": 30.0} | federation
    return replace(composed, federation=replace(composed.federation, **settings))


def nothing(_: int, __: TrainRequest) -> None:
    return


def run(  # type: ignore[no-untyped-def]
    folder: Path, config: Config, slow: Slow, *, clients: int = 3, asked=nothing, start: int | None = None
) -> Adapter:
    names = {number + 2: f"site{number}" for number in range(clients)}
    with RunDirectory.create(folder, resume=start is not None) as directory:
        if start is not None:
            directory.events.append(
                RunStarted(name="run", config={}, version="0", machine={}, resumed_after=start)
            )
        begin = (
            load_checkpoint(directory, start, SPEC)
            if start
            else Checkpoint(round=0, adapter=initial_adapter(SPEC, 1))
        )
        return AsynchronousFederation(
            grid=SlowGrid(slow, clients, asked),
            config=config,
            run=directory,
            spec=SPEC,
            aggregator=aggregator(config.aggregation),
            expected_clients=clients,
            registered=lambda: names,
            clock=slow.clock,
            sleep=slow.clock.sleep,
        ).run_steps(begin)


def of(folder: Path, kind):  # type: ignore[no-untyped-def]
    return [e for e in effective_events(read_events(folder / "rounds.jsonl")) if isinstance(e, kind)]


def test_a_late_site_holds_nobody_up_and_counts_with_its_staleness(tmp_path: Path) -> None:
    slow = Slow(seconds={4: 12.0})
    run(tmp_path / "run", config(), slow)
    trained = of(tmp_path / "run", ClientTrained)
    assert len(trained) == 4 * 3
    assert len({(e.client, e.training) for e in trained}) == len(trained)
    (late,) = [e for e in trained if e.client == "site2"][:1]
    assert late.staleness > 0
    assert late.weight == pytest.approx(12 / np.sqrt(1 + late.staleness))
    assert {e.staleness for e in trained if e.round == 1} == {0}
    assert {e.virtual_seconds for e in trained} == {None}
    assert [e.round for e in of(tmp_path / "run", RoundFinished)] == [0, 1, 2, 3, 4]


def test_all_at_one_pace_make_full_rounds(tmp_path: Path) -> None:
    run(tmp_path / "run", config(), Slow())
    assert [e.clients for e in of(tmp_path / "run", RoundAggregated)] == [("site0", "site1", "site2")] * 4
    assert {e.staleness for e in of(tmp_path / "run", ClientTrained)} == {0}


def test_a_silent_site_is_named_at_its_deadline_and_asked_in_the_next_step(tmp_path: Path) -> None:
    slow = Slow(seconds={4: NEVER, 2: 200.0, 3: 250.0})
    run(tmp_path / "run", config(min_replies=2, round_timeout_seconds=300.0), slow)
    failed = of(tmp_path / "run", ClientFailed)
    assert {(e.client, e.code) for e in failed} == {("site2", "FT606")}
    assert all(e.reason == "no reply within 300 s" for e in failed)
    assert {e.client for e in of(tmp_path / "run", ClientTrained)} == {"site0", "site1"}


def test_the_contract_holds_where_too_few_are_left(tmp_path: Path) -> None:
    slow = Slow(seconds={2: 400.0, 3: 400.0, 4: NEVER})
    with pytest.raises(FederationError, match=r"2 usable replies where 3 are required; failed: site2 at tr"):
        run(tmp_path / "run", config(round_attempts=1), slow)
    away = Slow(offline={3, 4})
    with pytest.raises(FederationError, match="1 of 3 clients appeared"):
        run(tmp_path / "away", config(min_replies=2), away)


def test_a_site_that_flower_cannot_reach_is_named(tmp_path: Path) -> None:
    run(tmp_path / "run", config(min_replies=2), Slow(refused={4}))
    assert {(e.client, e.code) for e in of(tmp_path / "run", ClientFailed)} == {("site2", "FT605")}


def test_a_site_that_comes_late_takes_part_from_the_next_step(tmp_path: Path) -> None:
    slow = Slow(offline={4})

    def asked(_: int, request: TrainRequest) -> None:
        if request.first_step > 0:
            slow.offline.discard(4)

    run(tmp_path / "run", config(min_replies=2, rounds=6), slow, asked=asked)
    began = {e.round: e.clients for e in of(tmp_path / "run", RoundStarted)}
    assert began[1] == ("site0", "site1")
    assert began[6] == ("site0", "site1", "site2")
    assert "site2" in {e.client for e in of(tmp_path / "run", ClientTrained)}


@pytest.mark.parametrize("killed_at", [1, 4, 6, 9, 11])
def test_a_server_that_is_killed_asks_again_for_what_was_under_way(tmp_path: Path, killed_at: int) -> None:
    asked: list[tuple[int, int]] = []

    def ask(site: int, request: TrainRequest) -> None:
        asked.append((site, request.round))
        if len(asked) == killed_at:
            raise Killed

    settings = config()
    with pytest.raises(Killed):
        run(tmp_path / "run", settings, Slow(seconds={4: 40.0}), asked=ask)
    finished = max(e.round for e in of(tmp_path / "run", RoundFinished))
    before = {(e.client, e.training) for e in of(tmp_path / "run", ClientTrained) if e.round <= finished}
    run(tmp_path / "run", settings, Slow(seconds={4: 40.0}), asked=ask, start=finished)
    trained = of(tmp_path / "run", ClientTrained)
    assert [e.round for e in of(tmp_path / "run", RoundFinished)] == [0, 1, 2, 3, 4]
    assert before < {(e.client, e.training) for e in trained} or not before
    for site in range(3):
        mine = [e.training for e in trained if e.client == f"site{site}"]
        assert mine == list(range(1, len(mine) + 1))
    resumed = asked[killed_at:]
    assert len(set(resumed)) == len(resumed)
    assert not before.intersection((f"site{site}", training) for site, training in resumed)
