"""A round that lacks its quorum is asked for again, and the result is as if nothing had happened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from federation.test_rounds import SPEC, Misbehaviour, arithmetic_client, behave, config, failures, run
from flwr.app import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.aggregation.registry import aggregator
from fedtune.errors import FederationError
from fedtune.federation.checkpoint import Checkpoint
from fedtune.federation.rounds import Federation
from fedtune.models.adapter import initial_adapter
from fedtune.observability.events import (
    ClientTrained,
    Event,
    QuorumMissed,
    RoundAggregated,
    RoundStarted,
    effective_events,
    read_events,
)
from fedtune.observability.round_table import round_table
from fedtune.observability.run_directory import RunDirectory
from fedtune.simulation.grid import InProcessGrid


def failing(times: Mapping[int, int]) -> tuple[Misbehaviour, Counter[int]]:
    """Clients that crash in training as often as said, and how often each was asked to train."""
    asked: Counter[int] = Counter()

    def misbehave(message: Message, number: int) -> Message | None:
        if message.metadata.message_type == "train":
            asked[number] += 1
            if asked[number] <= times.get(number, 0):
                raise RuntimeError("boom")
        return None

    return misbehave, asked


def events(folder: Path, kind: type[Event]) -> list[Event]:
    return [event for event in read_events(folder / "rounds.jsonl") if isinstance(event, kind)]


def test_updates_that_arrived_are_kept_and_the_result_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "calm", config(round_attempts=3), behave)
    misbehave, asked = failing({1: 2})
    disturbed = run(tmp_path / "run", config(round_attempts=3), misbehave)
    for name in SPEC.shapes:
        np.testing.assert_array_equal(disturbed.adapter[name], undisturbed.adapter[name], strict=True)
    assert asked == {0: 2, 1: 4, 2: 2}
    missed = events(tmp_path / "run", QuorumMissed)
    assert [(each.round, each.attempt, each.attempts) for each in missed] == [(1, 1, 3), (1, 2, 3)]
    assert all("site1" in each.reason and "site0" not in each.reason for each in missed)
    assert len(events(tmp_path / "run", ClientTrained)) == 6
    (first, *_) = round_table(effective_events(read_events(tmp_path / "run" / "rounds.jsonl")))[1:]
    assert (first["clients"], first["failed"]) == (["site0", "site2", "site1"], [])


def test_after_the_last_attempt_the_run_ends_with_the_name_of_who_failed(tmp_path: Path) -> None:
    misbehave, asked = failing({1: 9})
    with pytest.raises(FederationError, match=r"2 usable replies where 3 are required; failed: site1 at tr"):
        run(tmp_path / "run", config(round_attempts=3), misbehave)
    assert asked == {0: 1, 1: 3, 2: 1}
    assert len(events(tmp_path / "run", QuorumMissed)) == 2


@settings(max_examples=12, deadline=None)
@given(
    times=st.dictionaries(st.integers(0, 3), st.integers(0, 4)),
    attempts=st.integers(1, 3),
    quorum=st.none() | st.integers(1, 4),
)
def test_a_run_succeeds_with_its_contract_or_not_at_all(
    times: dict[int, int], attempts: int, quorum: int | None
) -> None:
    misbehave, asked = failing(times)
    settings_ = config(rounds=1, round_attempts=attempts, min_replies=quorum)
    method = replace(settings_.aggregation, method="fedavg", weighting="uniform")
    settings_ = replace(settings_, aggregation=method)
    arrived = [{n for n in range(4) if times.get(n, 0) < attempt} for attempt in range(1, attempts + 1)]
    expected = next((names for names in arrived if len(names) >= (quorum or 4)), None)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run"
        if expected is None:
            with pytest.raises(FederationError, match="FT607"):
                run(path, settings_, misbehave, clients=4)
            return
        result = run(path, settings_, misbehave, clients=4)
        (aggregated,) = events(path, RoundAggregated)
        trained = events(path, ClientTrained)
    assert isinstance(aggregated, RoundAggregated)
    assert aggregated.clients == tuple(f"site{number}" for number in sorted(expected))
    assert len(trained) == len(expected)
    step = np.mean([number + 1 for number in expected])
    for name, start in initial_adapter(SPEC, 1).items():
        np.testing.assert_allclose(result.adapter[name], start + step, rtol=1e-6)
    assert all(asked[number] == times.get(number, 0) + 1 for number in expected)


class Leaving(InProcessGrid):
    """A grid whose node 4 is connected only until it was first asked to train."""

    gone = False

    def get_node_ids(self):  # type: ignore[no-untyped-def]
        return [node for node in super().get_node_ids() if node != 4 or not self.gone]

    def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
        sent = list(messages)
        yield from super().send_and_receive(sent, timeout=timeout)
        self.gone = self.gone or any(
            m.metadata.dst_node_id == 4 and m.metadata.message_type == "train" for m in sent
        )


@pytest.mark.parametrize("drawn", [None, 3])
def test_a_site_whose_update_arrived_may_be_away_when_the_others_are_asked_again(
    tmp_path: Path, drawn: int | None
) -> None:
    misbehave, asked = failing({0: 1, 1: 1, 3: 1})
    settings_ = config(rounds=1, round_attempts=2, clients_per_round=drawn, min_replies=3)
    grid = Leaving(arithmetic_client(misbehave), 4)
    names = {node: f"site{node - 2}" for node in range(2, 6)}
    with RunDirectory.create(tmp_path / "run") as directory:
        Federation(
            grid=grid,
            config=settings_,
            run=directory,
            spec=SPEC,
            aggregator=aggregator(settings_.aggregation),
            expected_clients=4,
            registered=lambda: names,
        ).run_rounds(Checkpoint(round=0, adapter=initial_adapter(SPEC, 1)))
    first, second = events(tmp_path / "run", RoundStarted)
    (aggregated,) = events(tmp_path / "run", RoundAggregated)
    assert isinstance(first, RoundStarted)
    assert isinstance(second, RoundStarted)
    assert isinstance(aggregated, RoundAggregated)
    assert "site2" in first.clients
    assert second.clients == first.clients
    assert set(aggregated.clients) <= set(second.clients)
    assert asked[2] == 1
    assert not [each for each in failures(tmp_path / "run") if each[1] == "site2" and each[2] == "train"]


def test_a_site_that_comes_between_rounds_takes_part_from_then_on(tmp_path: Path) -> None:
    class Late(InProcessGrid):
        rounds = 0

        def get_node_ids(self):  # type: ignore[no-untyped-def]
            return [node for node in super().get_node_ids() if node != 4 or self.rounds > 0]

        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            sent = list(messages)
            yield from super().send_and_receive(sent, timeout=timeout)
            self.rounds += any(message.metadata.message_type == "train" for message in sent)

    settings_ = config(rounds=2, min_replies=2, join_timeout_seconds=0.1)
    with RunDirectory.create(tmp_path / "run") as directory:
        Federation(
            grid=Late(arithmetic_client(behave), 3),
            config=settings_,
            run=directory,
            spec=SPEC,
            aggregator=aggregator(settings_.aggregation),
            expected_clients=3,
            registered=lambda: {2: "site0", 3: "site1", 4: "site2"},
        ).run_rounds(Checkpoint(round=0, adapter=initial_adapter(SPEC, 1)))
    aggregated = events(tmp_path / "run", RoundAggregated)
    assert [len(each.clients) for each in aggregated if isinstance(each, RoundAggregated)] == [2, 3]
    assert failures(tmp_path / "run") == [(0, "site2", "hello", "FT612")]
