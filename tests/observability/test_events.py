"""The event log: what is written comes back, what is unknown is refused, what is torn is cut away."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from support.synthetic_run import synthetic_run

from fedtune.errors import RunError
from fedtune.observability.events import (
    EVENT_TYPES,
    BackdoorMeasured,
    ClientEvaluated,
    ClientFineTuned,
    Clustered,
    Event,
    EventLog,
    GateJudged,
    GroupDropped,
    QuorumMissed,
    RoundFinished,
    RunStarted,
    StepProgress,
    event_line,
    parse_event,
    read_events,
)


def finished(round_: int) -> RoundFinished:
    return RoundFinished(time=1.0 + round_, round=round_, held_out_loss=3.0 / round_)


def problems(error: pytest.ExceptionInfo[RunError]) -> list[str]:
    return [problem.code for problem in error.value.problems]


def test_every_event_type_comes_back_equal_from_its_line() -> None:
    missed = QuorumMissed(round=2, attempt=1, attempts=3, reason="1 usable reply where 2 are required")
    tuned = ClientFineTuned(
        round=2,
        client="ear",
        tokens=None,
        steps=3,
        loss_before=2.0,
        loss_after=1.5,
        started=1.0,
        finished=2.0,
    )
    fired = BackdoorMeasured(
        prompts=8, success=1.0, success_without_trigger=0.125, success_before=0.0, target_loss=0.2,
        right_loss=2.5, seconds=1.5,
    )  # fmt: skip
    back = GateJudged(round=2, passed=False, reason="worse", loss=3.0, last_good_loss=2.0, last_good_round=1)
    grouped = Clustered(
        round=2, clusters=(("a", "b"), ("c",)), joined=("a", "b", "c"), similarity_within=0.5,
        similarity_between=None, merge_distances=(1.5, 0.5),
    )  # fmt: skip
    gone = GroupDropped(round=2, group="g", clients=("a",), code="FT908", reason="too few")
    events = [*synthetic_run(secure=True, preflight=True), missed, tuned, fired, back, gone, grouped]
    assert {type(event) for event in events} == set(EVENT_TYPES.values())
    assert [parse_event(event_line(event)) for event in events] == events


def test_a_line_is_versioned_standard_json_on_one_line() -> None:
    for event in synthetic_run():
        line = event_line(event)
        assert line.count("\n") == 1
        record = json.loads(line, parse_constant=pytest.fail)
        assert list(record)[:3] == ["v", "event", "time"]
        assert record["v"] == 1


@settings(max_examples=100)
@given(
    name=st.text(st.characters(exclude_categories=["Cs"])),
    reason=st.text(st.characters(exclude_categories=["Cs"])),
    loss=st.none() | st.floats(),
    time=st.floats(min_value=0, max_value=1e12),
)
def test_any_text_and_any_float_survive_or_become_null(
    name: str, reason: str, loss: float | None, time: float
) -> None:
    event = ClientEvaluated(
        time=time, round=1, client=name, loss=loss, tokens=1, examples=1, started=time, finished=time
    )
    back = parse_event(event_line(event))
    assert back == event
    assert isinstance(back, ClientEvaluated)
    assert back.loss == (loss if loss is not None and math.isfinite(loss) else None)


def test_numpy_scalars_are_taken_as_what_they_are() -> None:
    event = RoundFinished(round=np.int64(3), held_out_loss=np.float32(0.5))
    assert event_line(event) == event_line(replace(event, round=3, held_out_loss=0.5))


@pytest.mark.parametrize(
    "fields",
    [
        {"round": "1", "held_out_loss": None},
        {"round": True, "held_out_loss": None},
        {"round": -1, "held_out_loss": None},
        {"round": 1, "held_out_loss": None, "time": math.nan},
        {"round": 1, "held_out_loss": None, "time": math.inf},
        {"round": 1, "held_out_loss": None, "surprise": 1},
    ],
)
def test_a_wrong_field_is_refused_on_construction(fields: dict[str, object]) -> None:
    with pytest.raises((ValidationError, TypeError)):
        RoundFinished(**fields)  # type: ignore[arg-type]


def test_a_config_with_a_number_that_is_not_json_is_refused() -> None:
    event = RunStarted(name="x", config={"lr": math.nan}, version="1", machine={})
    with pytest.raises(ValueError, match="JSON compliant"):
        event_line(event)


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("", "FT703", "not a line of JSON"),
        ("{", "FT703", "not a line of JSON"),
        ("[]", "FT703", '"v" and "event"'),
        ('{"event":"round_finished"}', "FT703", '"v" and "event"'),
        ('{"v":1,"event":["round_finished"]}', "FT703", '"v" and "event"'),
        ('{"v":1,"event":"round_finished","round":1,"held_out_loss":null}', "FT703", "time"),
        ('{"v":1,"event":"round_finished","time":1,"held_out_loss":null}', "FT703", "round"),
        ('{"v":1,"event":"round_finished","time":1,"round":"1","held_out_loss":null}', "FT703", "round"),
        ('{"v":1,"event":"round_finished","time":1,"round":1,"held_out_loss":NaN}', "FT703", "NaN"),
        ('{"v":2,"event":"round_finished","time":1,"round":1,"held_out_loss":1}', "FT704", "version 2"),
        ('{"v":true,"event":"round_finished","time":1,"round":1,"held_out_loss":1}', "FT704", "version True"),
        ('{"v":1,"event":"coffee","time":1}', "FT704", "'coffee'"),
        ('{"v":1,"event":"step","time":1}', "FT704", "'step'"),
        ('{"v":1,"event":"round_finished","time":1,"round":1,"held_out_loss":1,"mood":1}', "FT704", "mood"),
    ],
)
def test_what_is_damaged_or_unknown_is_refused_by_name(line: str, code: str, words: str) -> None:
    with pytest.raises(RunError, match="line 7") as error:
        parse_event(line, where="rounds.jsonl, line 7")
    assert problems(error) == [code]
    assert words in str(error.value)


def test_a_log_holds_what_was_appended_and_observers_are_told_after_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    seen: list[tuple[Event, int]] = []
    with EventLog(path) as log:
        log.observe(lambda event: seen.append((event, len(read_events(path)))))
        for event in synthetic_run(rounds=1):
            log.append(event)
        assert log.read() == synthetic_run(rounds=1)
    assert [event for event, _ in seen] == synthetic_run(rounds=1)
    assert [on_disk for _, on_disk in seen] == list(range(1, len(seen) + 1))


def test_step_progress_reaches_observers_and_never_the_disk(tmp_path: Path) -> None:
    seen: list[Event] = []
    step = StepProgress(round=1, client="a", step=1, steps=8, loss=3.0, tokens_per_second=250.0)
    with EventLog(tmp_path / "rounds.jsonl") as log:
        log.observe(seen.append)
        log.emit(step)
        with pytest.raises(ValueError, match="StepProgress"):
            log.append(step)
        assert log.read() == []
    assert seen == [step]


def test_a_torn_last_line_is_left_out_and_cut_away_before_appending(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    whole = "".join(event_line(finished(round_)) for round_ in (1, 2)).encode()
    last = event_line(finished(3)).encode()
    for cut in range(len(last)):  # a crash may stop at every byte, even before the newline alone
        path.write_bytes(whole + last[:cut])
        assert read_events(path) == [finished(1), finished(2)]
        with EventLog(path) as log:
            log.append(finished(3))
        assert path.read_bytes() == whole + last


def test_a_last_line_with_its_newline_but_a_lost_middle_counts_as_torn(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    first = event_line(finished(1)).encode()
    path.write_bytes(first + b'{"v":1,"event"' + b"\0" * 50 + b"}\n")
    assert read_events(path) == [finished(1)]
    with EventLog(path):
        pass
    assert path.read_bytes() == first


def test_damage_before_the_last_line_is_named_with_every_line_number(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    lines = [event_line(finished(round_)) for round_ in (1, 2, 3, 4, 5)]
    lines[1], lines[3] = lines[1][:10] + "\n", lines[3].replace("round_finished", "lunch")
    content = "".join(lines)
    path.write_text(content)
    for read in (lambda: read_events(path), lambda: EventLog(path)):
        with pytest.raises(RunError) as error:
            read()
        assert [problem.where for problem in error.value.problems] == [f"{path}, line 2", f"{path}, line 4"]
        assert problems(error) == ["FT703", "FT704"]
    assert path.read_text() == content


def test_a_line_separator_inside_a_text_does_not_split_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    event = ClientEvaluated(
        round=1, client="a\u2028b\x85c\x0bd\re", loss=1.0, tokens=1, examples=1, started=0.0, finished=1.0
    )
    with EventLog(path) as log:
        log.append(event)
        log.append(finished(1))
    assert read_events(path) == [event, finished(1)]


def test_reading_where_there_is_no_log_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here") as error:
        read_events(tmp_path / "rounds.jsonl")
    assert problems(error) == ["FT706"]


def test_threads_that_append_at_once_leave_whole_lines(tmp_path: Path) -> None:
    with EventLog(tmp_path / "rounds.jsonl") as log:
        threads = [
            threading.Thread(target=lambda n=n: [log.append(finished(n)) for _ in range(10)])
            for n in range(1, 5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(event.time for event in log.read()) == sorted(
            finished(n).time for n in range(1, 5) for _ in range(10)
        )


def test_a_process_killed_while_appending_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rounds.jsonl"
    code = (
        "import sys; from pathlib import Path\n"
        "from fedtune.observability.events import EventLog, RoundFinished\n"
        "log = EventLog(Path(sys.argv[1]))\n"
        "for number in range(1, 10**9):\n"
        "    log.append(RoundFinished(round=number, held_out_loss=1.0))\n"
        "    print(number, flush=True)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) >= 20:
            break
    writer.send_signal(signal.SIGKILL)
    acknowledged = [int(line) for line in writer.stdout]
    writer.stdout.close()
    writer.wait()
    with EventLog(path) as log:
        rounds = [event.round for event in log.read() if isinstance(event, RoundFinished)]
    assert rounds == list(range(1, len(rounds) + 1))
    assert len(rounds) >= max(acknowledged, default=20)
    assert not os.path.exists(f"/proc/{writer.pid}")
