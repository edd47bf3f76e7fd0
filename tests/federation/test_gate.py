"""What a gate lets through, what it takes back, and what it remembers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.config.schema import GateConfig
from fedtune.errors import Problem, UpdateError
from fedtune.federation.gate import Gate, median_loss
from fedtune.models.adapter import Adapter
from fedtune.observability.events import Event, GateJudged, RunStarted, event_line, parse_event


def adapter(value: float) -> Adapter:
    return {"A": np.full((2, 2), value, dtype=np.float32)}


def gate(losses: list[float | None], **changed: object) -> tuple[Gate, list[Event]]:
    settings = {"judge": "sites", "margin": 0.1, "norm_bound": None, "files": ()} | changed
    given_losses: Iterator[float | None] = iter(losses)
    events: list[Event] = []
    made = Gate(
        config=GateConfig(**settings),  # type: ignore[arg-type]
        loss=lambda *_: next(given_losses),
        record=events.append,
    )
    return made, events


@given(losses=st.lists(st.floats(0, 3), min_size=2, max_size=8), margin=st.floats(0, 1))
def test_each_adapter_is_measured_by_the_last_that_passed(losses: list[float], margin: float) -> None:
    made, events = gate([*losses], margin=margin)
    made.begin([], adapter(0), {})
    passed = [made.judge(number, adapter(0), adapter(1), {}) for number in range(1, len(losses))]
    good, expected = losses[0], []
    for loss in losses[1:]:
        expected.append(loss <= good + margin)
        good = loss if expected[-1] else good
    assert passed == expected
    assert [event.passed for event in events if isinstance(event, GateJudged)] == [True, *expected]


@given(losses=st.lists(st.floats(0, 3), min_size=4, max_size=8), stop=st.integers(1, 3))
def test_a_resumed_gate_judges_as_one_that_was_not_stopped(losses: list[float], stop: int) -> None:
    whole, events = gate([*losses])
    whole.begin([], adapter(0), {})
    expected = [whole.judge(number, adapter(0), adapter(1), {}) for number in range(1, len(losses))]
    resumed_after = RunStarted(name="a", config={}, version="1", machine={}, resumed_after=stop)
    kept = [parse_event(event_line(event)) for event in events]
    again, _ = gate(losses[stop + 1 :])
    again.begin([*kept, resumed_after], adapter(0), {})
    after = [again.judge(number, adapter(0), adapter(1), {}) for number in range(stop + 1, len(losses))]
    assert after == expected[stop:]


def test_a_step_beyond_the_bound_is_turned_away_unmeasured() -> None:
    made, events = gate([1.0, 1.0], norm_bound=1.9)
    made.begin([], adapter(0), {})
    assert not made.judge(1, adapter(0), adapter(1), {})  # the length of four ones is 2
    assert made.judge(2, adapter(0), adapter(0.9), {})
    last = events[1]
    assert isinstance(last, GateJudged)
    assert last.reason == "the global adapter moved by 2, at most 1.9 is allowed"
    assert (last.loss, last.last_good_loss, last.last_good_round) == (None, 1.0, 0)


def test_an_infinite_step_is_beyond_every_bound() -> None:
    made, _ = gate([1.0], norm_bound=1e30)
    made.begin([], adapter(0), {})
    assert not made.judge(1, adapter(0), adapter(np.nan), {})


def test_without_any_loss_nothing_passes_but_the_start() -> None:
    made, events = gate([None, None, 2.0, 2.05])
    made.begin([], adapter(0), {})
    assert [made.judge(number, adapter(0), adapter(1), {}) for number in (1, 2, 3)] == [False, True, True]
    assert isinstance(events[-1], GateJudged)
    assert events[-1].last_good_round == 2


def test_only_what_is_not_finite_is_refused_and_other_errors_stand() -> None:
    made, events = gate([1.0])
    made.begin([], adapter(0), {})

    def error(code: str) -> UpdateError:
        return UpdateError(Problem(code=code, what="w", where="x", fix="y"))

    assert not made.refuse(1, error("FT508"))
    assert isinstance(events[-1], GateJudged)
    assert (events[-1].passed, events[-1].reason) == (False, "w")
    with pytest.raises(UpdateError, match="FT510"):
        made.refuse(1, error("FT510"))


@given(
    honest=st.lists(st.floats(0, 5), min_size=3, max_size=9),
    lies=st.lists(st.sampled_from([0.0, 1e9, 2.5]), max_size=4),
)
def test_fewer_than_half_cannot_move_the_median_beyond_the_honest(
    honest: list[float], lies: list[float]
) -> None:
    lies = lies[: len(honest) - 1]
    found = median_loss([*lies, *honest])
    assert found is not None
    assert min(honest) <= found <= max(honest)
    assert found == pytest.approx(float(np.median([*honest, *lies])))


def test_no_losses_have_no_median() -> None:
    assert median_loss([]) is None
