"""FedBuff in a simulation: against an independent simulation, against rounds, and after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from support.error_pages import assert_page_shows_the_message
from support.quadratic import SPEC, own_pace, quadratic_client, update_of

from fedtune.aggregation.linear import FEDAVG
from fedtune.aggregation.registry import aggregator
from fedtune.aggregation.steered import configured_aggregator
from fedtune.config.schema import Config
from fedtune.errors import FederationError
from fedtune.federation.asynchronous import AsynchronousFederation
from fedtune.federation.buffer_filling import Filling
from fedtune.federation.buffer_step import BufferStep
from fedtune.federation.checkpoint import Checkpoint, load_checkpoint
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.flight import Flight
from fedtune.federation.rounds import Federation
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
from fedtune.observability.summary import summarise
from fedtune.simulation.grid import InProcessGrid

UNEQUAL = {"site0": 1.0, "site1": 2.5, "site2": 7.0, "site3": 1.0}


class Killed(BaseException):
    """As a power cut: nothing catches it."""


def nothing(_: int, __: TrainRequest) -> None:
    return


def steps(folder: Path, config: Config, asked=nothing, *, clients: int = 4, start=None) -> Adapter:  # type: ignore[no-untyped-def]
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
            grid=InProcessGrid(quadratic_client(asked), clients),
            config=config,
            run=directory,
            spec=SPEC,
            aggregator=aggregator(config.aggregation),
            expected_clients=clients,
        ).run_steps(begin)


def rounds(folder: Path, config: Config, *, clients: int) -> Adapter:
    with RunDirectory.create(folder) as directory:
        return Federation(
            grid=InProcessGrid(quadratic_client(), clients),
            config=config,
            run=directory,
            spec=SPEC,
            aggregator=configured_aggregator(config, sites=3),
            expected_clients=clients,
        ).run_rounds(Checkpoint(round=0, adapter=initial_adapter(SPEC, 1)))


def of(folder: Path, kind):  # type: ignore[no-untyped-def]
    return [e for e in effective_events(read_events(folder / "rounds.jsonl")) if isinstance(e, kind)]


def simulated(  # the paper's Algorithm 1 written out, event by event
    seconds: list[float], *, buffer: int, steps: int, exponent: float, rate: float, momentum: float
) -> tuple[dict[str, np.ndarray], list[tuple[int, int, int, float]]]:
    adapter = {name: tensor.astype(np.float64) for name, tensor in initial_adapter(SPEC, 1).items()}
    velocity = {name: np.zeros_like(tensor) for name, tensor in adapter.items()}
    held = {site: (seconds[site], 0, 1, adapter) for site in range(len(seconds))}
    came: list[tuple[int, int, int, float]] = []
    pile: list[tuple[float, float, dict[str, np.ndarray]]] = []
    version = 0
    while version < steps:
        now = min(end for end, *_ in held.values())
        free = []
        for site in [site for site, (end, *_) in sorted(held.items()) if end == now]:
            _, began, training, received = held[site]
            update = update_of(site, {n: t.astype(np.float32) for n, t in received.items()}, training)
            weight, late = 4.0 * (site + 1), version - began
            came.append((version + 1, site, late, now))
            pile.append((weight, weight / (1 + late) ** exponent, update))
            free.append((site, training + 1))
            if len(pile) == buffer:
                version += 1
                for name in adapter:
                    total = sum(counted * update[name].astype(np.float64) for _, counted, update in pile)
                    velocity[name] = momentum * velocity[name] + total / sum(weight for weight, *_ in pile)
                adapter = {name: adapter[name] + rate * velocity[name] for name in adapter}
                pile = []
                if version == steps:
                    return adapter, came
        for site, training in free:
            held[site] = (now + seconds[site], version, training, adapter)
    raise AssertionError


@pytest.mark.parametrize("buffer", [1, 2, 3, 7])
@pytest.mark.parametrize(("exponent", "rate", "momentum"), [(0.5, 1.0, 0.0), (1.0, 0.5, 0.9)])
def test_it_is_the_papers_algorithm(
    tmp_path: Path, buffer: int, exponent: float, rate: float, momentum: float
) -> None:
    config = own_pace(
        "federation.rounds=6",
        f"asynchronous.buffer={buffer}",
        f"asynchronous.staleness_exponent={exponent}",
        "server_optimizer=fedavgm",
        f"server_optimizer.learning_rate={rate}",
        f"server_optimizer.momentum={momentum}",
        **UNEQUAL,
    )
    result = steps(tmp_path / "run", config)
    expected, came = simulated(
        list(UNEQUAL.values()), buffer=buffer, steps=6, exponent=exponent, rate=rate, momentum=momentum
    )
    for name in SPEC.shapes:
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-5, atol=1e-6)
    trained = of(tmp_path / "run", ClientTrained)
    assert [(e.round, int(e.client[4:]), e.staleness, e.virtual_seconds) for e in trained] == came
    assert len({(e.client, e.training) for e in trained}) == len(trained) == 6 * buffer


@pytest.mark.parametrize("optimizer", ["none", "fedadam"])
def test_a_buffer_of_all_sites_of_one_speed_gives_rounds_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = own_pace("federation.rounds=4", "asynchronous.buffer=4", f"server_optimizer={optimizer}")
    own = steps(tmp_path / "own", config)
    together = rounds(
        tmp_path / "rounds",
        replace(config, asynchronous=replace(config.asynchronous, name="none")),
        clients=4,
    )
    for name in SPEC.shapes:
        np.testing.assert_array_equal(own[name], together[name], strict=True)
    for kind, key in ((RoundFinished, "held_out_loss"), (RoundFinished, "virtual_seconds")):
        assert [getattr(e, key) for e in of(tmp_path / "own", kind)] == [
            getattr(e, key) for e in of(tmp_path / "rounds", kind)
        ]
    assert {e.staleness for e in of(tmp_path / "own", ClientTrained)} == {0}
    assert [e.weights for e in of(tmp_path / "own", RoundAggregated)] == [
        e.weights for e in of(tmp_path / "rounds", RoundAggregated)
    ]


def test_a_round_lasts_as_long_as_its_slowest_site(tmp_path: Path) -> None:
    config = own_pace("federation.rounds=3", **UNEQUAL)
    rounds(
        tmp_path / "run",
        replace(config, asynchronous=replace(config.asynchronous, name="none")),
        clients=4,
    )
    assert [e.virtual_seconds for e in of(tmp_path / "run", RoundFinished)] == [0.0, 7.0, 14.0, 21.0]


@pytest.mark.parametrize("killed_at", [1, 4, 7, 8, 10, 13, 17])
def test_a_run_that_is_killed_goes_on_bit_for_bit(tmp_path: Path, killed_at: int) -> None:
    config = own_pace("federation.rounds=6", "server_optimizer=fedavgm", **UNEQUAL)
    whole = steps(tmp_path / "whole", config)
    count = 0

    def asked(_: int, __: TrainRequest) -> None:
        nonlocal count
        count += 1
        if count == killed_at:
            raise Killed

    with pytest.raises(Killed):
        steps(tmp_path / "run", config, asked)
    finished = max(e.round for e in of(tmp_path / "run", RoundFinished))
    result = steps(tmp_path / "run", config, start=finished)
    for name in SPEC.shapes:
        np.testing.assert_array_equal(result[name], whole[name], strict=True)

    def told(folder: Path) -> list[tuple[object, ...]]:
        return [
            (e.round, e.client, e.training, e.staleness, e.virtual_seconds, e.weight, e.delta_norm)
            for e in of(folder, ClientTrained)
        ]

    assert told(tmp_path / "run") == told(tmp_path / "whole")


def test_a_site_stands_on_the_schedule_where_the_server_does_and_counts_its_own_trainings(
    tmp_path: Path,
) -> None:
    asked: list[tuple[int, int, int]] = []
    config = own_pace("federation.rounds=4", **UNEQUAL)
    steps(tmp_path / "run", config, lambda site, r: asked.append((site, r.round, r.first_step)))
    for site in range(4):
        mine = [(training, first) for who, training, first in asked if who == site]
        assert [training for training, _ in mine] == list(range(1, len(mine) + 1))
        assert [first for _, first in mine] == sorted(first for _, first in mine)
    assert max(first for *_, first in asked) < 4


def test_an_update_from_too_long_ago_is_refused_by_name_and_its_site_asked_again(tmp_path: Path) -> None:
    config = own_pace(
        "federation.rounds=8", "asynchronous.buffer=2", "asynchronous.max_staleness=2", **UNEQUAL
    )
    steps(tmp_path / "run", config)
    refused = of(tmp_path / "run", ClientFailed)
    assert ("site2", 7.0) in {(e.client, UNEQUAL[e.client]) for e in refused}
    assert {e.code for e in refused} == {"FT523"}
    assert all("at most 2 are allowed" in e.reason for e in refused)
    trained = of(tmp_path / "run", ClientTrained)
    assert max(e.staleness for e in trained) <= 2
    assert [len(e.clients) for e in of(tmp_path / "run", RoundStarted)] == [4] * 8
    summary = summarise(read_events(tmp_path / "run" / "rounds.jsonl"))
    assert summary["virtual_seconds"] == of(tmp_path / "run", RoundFinished)[-1].virtual_seconds
    assert summary["staleness_max"] == max(e.staleness for e in trained)


def test_a_site_that_fails_stops_the_run_unless_the_contract_lets_it(tmp_path: Path) -> None:
    def asked(site: int, _: TrainRequest) -> None:
        if site == 1:
            raise RuntimeError("boom")

    with pytest.raises(FederationError, match=r"3 usable replies where 4 are required; failed: site1"):
        steps(tmp_path / "strict", own_pace("federation.rounds=3", **UNEQUAL), asked)
    lenient = own_pace("federation.rounds=3", "federation.min_replies=3", **UNEQUAL)
    steps(tmp_path / "lenient", lenient, asked)
    assert {e.client for e in of(tmp_path / "lenient", ClientTrained)} == {"site0", "site3"}
    assert {e.client for e in of(tmp_path / "lenient", ClientFailed)} == {"site1"}


def test_nobody_left_ends_the_run(tmp_path: Path) -> None:
    def asked(_: int, request: TrainRequest) -> None:
        if request.round > 1:
            raise RuntimeError("boom")

    config = own_pace("federation.rounds=1", "asynchronous.buffer=5", "federation.round_attempts=2")
    with pytest.raises(FederationError, match="4 of 5 updates of the buffer came, and no site is left"):
        steps(tmp_path / "run", config, asked)


def test_the_page_of_a_refusal_shows_its_message() -> None:
    config, flight = own_pace(), Flight()
    late = flight.begin("site0", 7)
    step = BufferStep(
        number=31,
        filling=Filling(config=config, method=FEDAVG, current=initial_adapter(SPEC, 1), before={}),
        there=frozenset({"site0"}),
        wanted=1,
        config=config,
        spec=SPEC,
        aggregator=FEDAVG,
        sites=Dialogue(grid=InProcessGrid(quadratic_client(), 1), timeout_seconds=1.0, record=print),
        flight=flight,
        adapters={7: initial_adapter(SPEC, 1)},
        time=lambda: None,
    )
    (reply,) = step.sites.grid.send_and_receive([Message(step.request(late), 2, "train")])
    assert_page_shows_the_message("FT523", lambda: step.take(late, reply))
    assert flight.done == {"site0": 1}, "its next training is another"
