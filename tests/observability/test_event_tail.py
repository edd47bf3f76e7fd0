"""A log that another process writes is followed line by line, however its bytes arrive."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedtune.errors import RunError
from fedtune.observability.event_tail import EventTail
from fedtune.observability.events import Event, RoundFinished, event_line

EVENTS = [RoundFinished(time=float(number), round=number, held_out_loss=None) for number in range(5)]
LOG = "".join(event_line(event) for event in EVENTS).encode()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(LOG)), max_size=8))
def test_each_event_is_told_once_and_in_order_however_the_bytes_arrive(
    tmp_path: Path, cuts: list[int]
) -> None:
    path, heard = tmp_path / "rounds.jsonl", list[Event]()
    path.unlink(missing_ok=True)
    tail = EventTail(path, [heard.append])
    tail.read()
    for end in [*sorted(cuts), len(LOG)]:
        path.write_bytes(LOG[:end])
        tail.read()
        assert heard == EVENTS[: LOG[:end].count(b"\n")]
    assert (tail.last, tail.finished_rounds) == (EVENTS[-1], 4)


def test_what_was_there_before_can_be_passed_over(tmp_path: Path) -> None:
    path, heard = tmp_path / "rounds.jsonl", list[Event]()
    assert EventTail.at_end(path, []).last is None
    path.write_bytes(LOG)
    tail = EventTail.at_end(path, [heard.append])
    with path.open("ab") as log:
        log.write(event_line(EVENTS[0]).encode())
    tail.read()
    assert heard == [EVENTS[0]]


def test_a_line_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "rounds.jsonl").write_bytes(LOG + b"{}\n")
    with pytest.raises(RunError, match="FT703"):
        EventTail(tmp_path / "rounds.jsonl", []).read()
