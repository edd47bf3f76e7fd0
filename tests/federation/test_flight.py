"""The event queue of virtual sites, and the state that it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from support.quadratic import own_pace

from fedtune.config.schema import Config
from fedtune.federation.flight import Flight, Training, parse_flight
from fedtune.federation.pace import VirtualPace
from fedtune.federation.speed import RoundClock, seconds, training_microseconds
from fedtune.observability.events import RoundFinished

CONFIG = own_pace()


class Answering:
    """Every site answers at once; a message is of no account."""

    def exchange(
        self, _: str, __: int, contents: Mapping[str, RecordDict], take: Callable[[str, Any], None]
    ) -> None:
        for name in contents:
            take(name, None)


@dataclass
class Counting:
    """A step that notes what comes, and lets some trainings fail the first time."""

    number: int
    room: int
    names: tuple[str, ...]
    flight: Flight
    failing: set[tuple[str, int]]
    came: list[tuple[int, Training, int]] = field(default_factory=list)
    asked: int = 0

    def willing(self) -> tuple[str, ...]:
        return self.names

    def request(self, _: Training) -> RecordDict:
        self.asked += 1
        return RecordDict()

    def take(self, training: Training, _: Message) -> None:
        if (training.site, training.number) in self.failing:
            self.failing.remove((training.site, training.number))
            return
        assert self.room > 0, "no more than the buffer holds is ever asked for"
        self.room -= 1
        self.came.append((self.number, training, self.flight.now))
        self.flight.ended(training)

    def failed(self, training: Training) -> None:
        self.flight.failed(training)


@given(
    speeds=st.lists(st.sampled_from([1.0, 1.5, 2.0, 3.0, 0.1, 7.3]), min_size=1, max_size=6),
    buffer=st.integers(1, 8),
    steps=st.integers(1, 6),
    failing=st.sets(st.tuples(st.integers(0, 5), st.integers(1, 4)), max_size=4),
    resumed_at=st.integers(0, 6),
)
def test_every_update_is_used_once_in_the_order_of_time_with_its_right_staleness(
    speeds: list[float], buffer: int, steps: int, failing: set[tuple[int, int]], resumed_at: int
) -> None:
    names = tuple(f"site{number}" for number in range(len(speeds)))
    config = _with_speeds(dict(zip(names, speeds, strict=True)))
    pace, flight = VirtualPace(sites=Answering(), config=config), Flight()  # type: ignore[arg-type]
    fails = {(f"site{site}", number) for site, number in failing}
    came: list[tuple[int, Training, int]] = []
    stepped_at = {0: 0}
    for number in range(1, steps + 1):
        step = Counting(number=number, room=buffer, names=names, flight=flight, failing=fails)
        while step.room > 0:
            before, asked = flight.now, step.asked
            pace.advance(step, flight)
            assert flight.now >= before
            assert step.asked - asked <= buffer
        assert len(step.came) == buffer
        came += step.came
        stepped_at[number] = flight.now
        if number == resumed_at:
            flight = pace.resumed(parse_flight(flight.to_json()))
    used = [(training.site, training.number) for _, training, _ in came]
    assert len(set(used)) == len(used)
    for name in names:
        mine = [number for site, number in used if site == name]
        assert mine == list(range(1, len(mine) + 1))
    for number, training, now in came:
        assert training.version <= number - 1, "staleness is never below 0"
        began = training.end - training_microseconds(config, training.site)
        assert training.end <= now
        assert stepped_at[training.version] <= began, "nobody begins with an adapter of the future"
        later = stepped_at.get(training.version + 1)
        assert later is None or began <= later, "nobody begins with an adapter that was replaced before"
    assert [now for *_, now in came] == sorted(now for *_, now in came)


def _with_speeds(sites: dict[str, float]) -> Config:
    return replace(CONFIG, speed=replace(CONFIG.speed, sites=sites))


def test_those_who_are_done_together_come_by_name_and_no_more_than_there_is_room() -> None:
    flight = Flight()
    for name in ("c", "a", "b"):
        flight.begin(name, 0, microseconds=5)
    flight.begin("slow", 0, microseconds=6)
    assert [training.site for training in flight.next(2)] == ["a", "b"]
    assert flight.due_now()
    assert flight.now == 5


def test_a_site_does_one_thing_at_a_time_and_a_training_ends_once() -> None:
    flight = Flight()
    training = flight.begin("a", 0)
    with pytest.raises(ValueError, match="a is training"):
        flight.begin("a", 0)
    flight.ended(training)
    with pytest.raises(ValueError, match="training 1 of a is not under way"):
        flight.ended(training)
    again = flight.begin("a", 1)
    assert again.number == 2
    flight.failed(again)
    assert flight.begin("a", 2).number == 2


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_damage_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        parse_flight(text)


@pytest.mark.parametrize(
    "changed",
    [
        {"v": 2},
        {"now": -1},
        {"now": 1.5},
        {"done": {"a": 3}},
        {"trainings": [{"site": "a", "number": 1, "version": 0, "end": 1}] * 2},
        {"trainings": [{"site": "a", "number": 1, "version": 0, "end": 1, "more": 1}]},
        {"more": 1},
    ],
    ids=str,
)
def test_a_state_that_cannot_be_is_refused(changed: dict[str, Any]) -> None:
    flight = Flight()
    flight.begin("a", 0, microseconds=1)
    with pytest.raises(ValueError, match=r"validation error|twice|out of its turn"):
        parse_flight(json.dumps(json.loads(flight.to_json()) | changed))


def test_speeds_are_drawn_by_seed_and_name_alone_about_the_median() -> None:
    config = replace(CONFIG, speed=replace(CONFIG.speed, sigma=0.5, median_seconds_per_step=2.0))
    drawn = [training_microseconds(config, f"site{number}") for number in range(400)]
    assert drawn == [training_microseconds(config, f"site{number}") for number in range(400)]
    assert len(set(drawn)) == 400
    assert 1.8 < seconds(sorted(drawn)[200]) < 2.2
    other = replace(config, seed=config.seed + 1)
    assert training_microseconds(other, "site0") != drawn[0]
    steps = replace(config, training=replace(config.training, steps_per_round=3))
    assert training_microseconds(steps, "site0") == 3 * drawn[0]
    assert training_microseconds(_with_speeds({"site0": 1e-9}), "site0") == 1


def test_the_clock_of_rounds_goes_on_after_a_resume() -> None:
    config = _with_speeds({"a": 2.0, "b": 3.5})
    clock = RoundClock(config, [RoundFinished(round=1, held_out_loss=None, virtual_seconds=3.5)])
    clock.trained("a")
    assert clock.finished() == 5.5
    clock.trained("a")
    clock.trained("b")
    assert clock.finished() == 9.0
    silent = RoundClock(replace(config, speed=replace(config.speed, name="none")), [])
    silent.trained("a")
    assert silent.finished() is None
