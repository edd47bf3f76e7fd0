"""Clusters on quadratics with two optima: they are found, and each goes on as a federation of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.quadratic import SPEC, STEP, quadratic_client

from fedtune.aggregation.carrying import Carried, CarryingAccumulator, begin
from fedtune.aggregation.clusters import clusters_of
from fedtune.aggregation.steered import configured_aggregator
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.federation.checkpoint import Checkpoint, load_checkpoint
from fedtune.federation.rounds import Federation
from fedtune.federation.wire import TrainRequest
from fedtune.models.adapter import Adapter, initial_adapter
from fedtune.observability.events import (
    ClientEvaluated,
    Clustered,
    RoundAggregated,
    RoundStarted,
    RunStarted,
    effective_events,
    read_events,
)
from fedtune.observability.run_directory import RunDirectory
from fedtune.simulation.grid import InProcessGrid
from fedtune.training.delta import Delta

ROUNDS, WARM_UP = 5, 1
GROUPS = ((0, 2, 5), (1, 3, 4, 6))
START = initial_adapter(SPEC, 1)


def centres() -> list[Adapter]:
    """Each site's optimum: that of its group, and a little of its own."""
    draw = np.random.default_rng(0)
    of_group = [{name: draw.normal(size=shape) for name, shape in SPEC.shapes.items()} for _ in GROUPS]
    found = []
    for number in range(sum(map(len, GROUPS))):
        group = of_group[0 if number in GROUPS[0] else 1]
        found.append({name: value + 0.2 * draw.normal(size=value.shape) for name, value in group.items()})
    return found


CENTRES = centres()


def update(number: int, received: Adapter, training: int) -> Adapter:
    return {
        name: (STEP * (CENTRES[number][name] - tensor) / training**0.5).astype(np.float32)
        for name, tensor in received.items()
    }


def loss(number: int, adapter: Adapter) -> float:
    return sum(float(np.sum((adapter[name] - CENTRES[number][name]) ** 2)) for name in SPEC.shapes)


@cache
def settings(*overrides: str) -> Config:
    composed = compose(
        [
            "experiment=demo",
            "aggregation=fedavg",
            "personal=clusters",
            f"personal.warm_up_rounds={WARM_UP}",
            f"federation.rounds={ROUNDS}",
            "federation.round_attempts=1",
            *overrides,
        ]
    )
    return replace(composed, partition=replace(composed.partition, values=()))


def nothing(_: int, __: TrainRequest) -> None:
    return


def run(  # type: ignore[no-untyped-def]
    folder: Path, config: Config, asked=nothing, *, numbers: Sequence[int] = range(7), start: int = 0
) -> Checkpoint:
    with RunDirectory.create(folder, resume=start > 0) as directory:
        begin_at = Checkpoint(round=0, adapter=START)
        if start:
            directory.events.append(
                RunStarted(name="run", config={}, version="0", machine={}, resumed_after=start)
            )
            begin_at = load_checkpoint(directory, start, SPEC)
        client = quadratic_client(asked, update=update, loss=loss, numbers=numbers)
        Federation(
            grid=InProcessGrid(client, len(numbers)),
            config=config,
            run=directory,
            spec=SPEC,
            aggregator=configured_aggregator(config, sites=len(numbers)),
            expected_clients=len(numbers),
        ).run_rounds(begin_at)
        return load_checkpoint(directory, config.federation.rounds, SPEC)


def of(folder: Path, kind: type[Any]) -> list[Any]:
    return [e for e in effective_events(read_events(folder / "rounds.jsonl")) if isinstance(e, kind)]


def alone(
    config: Config,
    cohorts: Mapping[int, Sequence[int]],
    adapter: Adapter = START,
    carried: Carried | None = None,
) -> tuple[Adapter, Carried]:
    """A federation of these sites in these rounds, by the method itself and nothing of clusters."""
    method, carried = configured_aggregator(config, sites=7), carried or {}
    for number, cohort in cohorts.items():
        total = begin(method, adapter, carried)
        for site in cohort:
            made = update(site, adapter, number)
            names = SPEC.names(method.factors(number))
            total.add(Delta(tensors={name: made[name] for name in names}), 4.0 * (site + 1))
        adapter = total.result()
        carried = total.carried() if isinstance(total, CarryingAccumulator) else carried
    return adapter, carried


def assert_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize(
    "also",
    [(), ("aggregation=alternating",), ("aggregation=ffa",), ("server_optimizer=fedavgm",)],
    ids=["fedavg", "alternating", "ffa", "momentum"],
)
def test_groups_are_found_and_each_goes_on_as_a_federation_of_its_own(
    tmp_path: Path, also: tuple[str, ...]
) -> None:
    config = settings(*also, "aggregation.error_meter=false")
    end = run(tmp_path / "run", config)
    (formed,) = of(tmp_path / "run", Clustered)
    assert formed.round == WARM_UP + 1
    assert formed.clusters == tuple(tuple(f"site{number}" for number in group) for group in GROUPS)
    assert len(formed.joined) == 7
    assert formed.similarity_within > 0.3 > 0 > formed.similarity_between
    assert len(formed.merge_distances) == 6
    assert formed.merge_distances[0] > 1.2 > formed.merge_distances[1]
    warm = alone(config, {1: range(7)})
    clusters = clusters_of(end.carried)
    for group, cluster in zip(GROUPS, clusters, strict=True):
        adapter, state = alone(config, dict.fromkeys(range(2, ROUNDS + 1), group), *warm)
        assert_same(cluster.adapter, adapter)
        assert_same(cluster.state, state)
        assert cluster.members == {f"site{number}": 4.0 * (number + 1) for number in group}
    weights = [sum(4.0 * (number + 1) for number in group) for group in GROUPS]
    for name, value in end.adapter.items():
        mean = np.average([each.adapter[name].astype(float) for each in clusters], axis=0, weights=weights)
        np.testing.assert_allclose(value, mean, rtol=1e-6, atol=1e-7)


def test_each_site_says_its_loss_of_both_models_and_its_own_is_better(tmp_path: Path) -> None:
    end = run(tmp_path / "run", settings())
    evaluated = {(e.round, e.client): e for e in of(tmp_path / "run", ClientEvaluated)}
    assert all(evaluated[round_, "site0"].personal_loss is None for round_ in range(WARM_UP + 1))
    for group, cluster in zip(GROUPS, clusters_of(end.carried), strict=True):
        for number in group:
            said = evaluated[ROUNDS, f"site{number}"]
            assert said.loss == pytest.approx(loss(number, end.adapter))
            assert said.personal_loss == pytest.approx(loss(number, cluster.adapter))
            assert said.personal_loss < said.loss


def test_before_the_clusters_rounds_are_as_without_them(tmp_path: Path) -> None:
    warm = run(tmp_path / "warm", settings("personal.warm_up_rounds=4"))
    plain = run(tmp_path / "plain", settings("personal=none", "personal.warm_up_rounds=0"))
    with_, without = (of(tmp_path / name, RoundAggregated) for name in ("warm", "plain"))
    for first, second in zip(with_[:4], without[:4], strict=True):
        assert (first.weights, first.delta_norm) == (second.weights, second.delta_norm)
    for name, value in plain.adapter.items():  # both weigh all updates of round 5, in another order
        np.testing.assert_allclose(warm.adapter[name], value, rtol=1e-5, atol=1e-7)


class Killed(BaseException):
    """As a power cut: nothing catches it."""


@pytest.mark.parametrize("round_number", range(2, ROUNDS + 1))
def test_a_run_that_was_killed_in_any_round_ends_with_the_same_bits(
    tmp_path: Path, round_number: int
) -> None:
    config = settings("server_optimizer=fedavgm")
    whole = run(tmp_path / "whole", config)

    def kill(site: int, request: TrainRequest) -> None:
        if (site, request.round) == (4, round_number):
            raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "run", config, kill)
    again = run(tmp_path / "run", config, start=round_number - 1)
    assert_same(again.adapter, whole.adapter)
    assert_same(again.carried, whole.carried)
    assert [(e.round, e.clusters) for e in of(tmp_path / "run", Clustered)] == [
        (e.round, e.clusters) for e in of(tmp_path / "whole", Clustered)
    ]


def test_the_order_in_which_sites_answer_changes_nothing(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", settings())
    other = run(tmp_path / "other", settings(), numbers=(5, 0, 6, 2, 1, 4, 3))
    assert_same(other.adapter, whole.adapter)
    assert_same(other.carried, whole.carried)


def test_a_site_that_missed_the_clustering_is_assigned_by_its_first_update_and_counts_from_the_next(
    tmp_path: Path,
) -> None:
    def late(site: int, request: TrainRequest) -> None:
        if site in (0, 6) and request.round in (WARM_UP + 1, WARM_UP + 2):
            raise RuntimeError("away")

    config = settings("federation.min_replies=5")
    end = run(tmp_path / "run", config, late)
    formed, joined = of(tmp_path / "run", Clustered)
    assert formed.clusters == (("site1", "site3", "site4"), ("site2", "site5"))
    assert (joined.round, joined.joined) == (4, ("site0", "site6"))
    assert joined.clusters == (("site1", "site3", "site4", "site6"), ("site0", "site2", "site5"))
    assert (joined.similarity_within, joined.merge_distances) == (None, ())
    warm = alone(config, {1: range(7)})
    for (first, then), cluster in zip(
        (((1, 3, 4), (1, 3, 4, 6)), ((2, 5), (0, 2, 5))), clusters_of(end.carried), strict=True
    ):
        adapter, _ = alone(config, {2: first, 3: first, 4: first, 5: then}, *warm)
        assert_same(cluster.adapter, adapter)
    counted = {event.round: event for event in of(tmp_path / "run", RoundAggregated)}
    assert "site0" not in counted[4].clients
    assert "site0" in counted[5].clients
    assert sum(counted[4].weights) == pytest.approx(1)


def test_the_clustering_asks_everyone_and_afterwards_clusters_go_on_with_who_is_drawn(tmp_path: Path) -> None:
    config = settings("federation.clients_per_round=2", "federation.rounds=9")
    end = run(tmp_path / "run", config)
    (formed,) = of(tmp_path / "run", Clustered)
    assert len(formed.joined) == 7
    cohorts = {e.round: [int(name[4:]) for name in e.clients] for e in of(tmp_path / "run", RoundStarted)}
    assert [len(cohort) for cohort in cohorts.values()] == [2, 7, 2, 2, 2, 2, 2, 2, 2]
    warm = alone(config, {1: cohorts[1]})
    for group, cluster in zip(GROUPS, clusters_of(end.carried), strict=True):
        of_group = {number: [site for site in cohorts[number] if site in group] for number in range(2, 10)}
        assert not all(of_group.values()), "in some round nobody of a cluster is drawn"
        adapter, _ = alone(config, {number: sites for number, sites in of_group.items() if sites}, *warm)
        assert_same(cluster.adapter, adapter)


def test_with_too_few_updates_the_clusters_are_made_a_round_later(tmp_path: Path) -> None:
    def away(site: int, request: TrainRequest) -> None:
        if site and request.round == WARM_UP + 1:
            raise RuntimeError("away")

    config = settings("federation.min_replies=1")
    end = run(tmp_path / "run", config, away)
    (formed,) = of(tmp_path / "run", Clustered)
    assert formed.round == WARM_UP + 2
    start = alone(config, {1: range(7), 2: (0,)})
    adapter, _ = alone(config, dict.fromkeys(range(3, ROUNDS + 1), GROUPS[0]), *start)
    assert_same(clusters_of(end.carried)[0].adapter, adapter)
