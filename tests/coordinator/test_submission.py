"""One wanted run against a SuperLink that kills, forgets and refuses: it ends once, with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import mkdtemp

import httpx
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.fake_control import FakeControl, refused
from support.scripted_grid import Clock

from fedtune.config.compose import compose
from fedtune.coordinator.submission import FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS, Submission
from fedtune.coordinator.wanted import WantedRun
from fedtune.observability.events import RoundFinished, RunFinished
from fedtune.observability.run_directory import RunDirectory

CONFIG = compose(["experiment=demo", "backend=deployment", "name=lungs"])
REFUSAL = "ServerApp failed with exception: FT711: the run was started with seed=1, now it is 2\n  where: x"


def submission(folder: Path, *, most_restarts: int = 2, clock: Clock | None = None) -> Submission:
    return Submission(
        run=WantedRun(config=CONFIG, stopped=False),
        folder=folder,
        most_restarts=most_restarts,
        clock=clock or Clock(),
    )


def write(folder: Path, *events: RoundFinished | RunFinished) -> None:
    with RunDirectory.create(folder, resume=True) as run:
        for event in events:
            run.events.append(event)


def ended(status: str, reason: str | None = None) -> RunFinished:
    numbers = {"seconds": 1.0, "load_seconds": 0.0, "peak_memory_mib": 1.0}
    return RunFinished(status=status, reason=reason, **numbers)  # type: ignore[arg-type]


class Driven(RuleBasedStateMachine):
    """What can happen to a run, in any order, and what must hold after each step."""

    @initialize(most=st.integers(0, 3))
    def begin(self, most: int) -> None:
        self.folder, self.clock, self.control = Path(mkdtemp()) / "lungs", Clock(), FakeControl()
        self.submission = submission(self.folder, most_restarts=most, clock=self.clock)
        self.rounds = 0
        self.named: set[str] = set()
        self.stop_asked = False

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder.parent)

    @rule(sites=st.sampled_from([0, 4, 4, 4]), seconds=st.sampled_from([1.0, 10.0, 400.0]))
    def advance(self, sites: int, seconds: float) -> None:
        self.clock.sleep(seconds)
        before, status = len(self.control.calls), self.submission.status
        over = self.submission.has_ended
        try:
            self.submission.advance(self.control, sites=sites)  # type: ignore[arg-type]
        except httpx.HTTPError:
            assert self.control.down or self.control.refuses is not None
        if over:
            assert self.submission.status == status
            assert len(self.control.calls) == before

    @precondition(lambda self: self.control.running)
    @rule(how=st.sampled_from(["killed", "interrupted", "failed", "completed", "refused", "forgotten"]))
    def session_ends(self, how: str) -> None:
        (number,) = self.control.running
        match how:
            case "forgotten":
                del self.control.runs[number]
                return
            case "refused":
                self.named.add("FT711")
            case "interrupted":
                write(self.folder, ended("interrupted", "Its process was told to end."))
            case "failed":
                self.named.add("FT607")
                write(self.folder, ended("failed", "FT607: too few"))
            case "completed":
                self.named.add("")
                write(self.folder, ended("completed"))
        self.control.end(number, REFUSAL if how == "refused" else "No heartbeat received.")

    @precondition(lambda self: self.control.running)
    @rule()
    def a_round_finishes(self) -> None:
        write(self.folder, RoundFinished(round=self.rounds, held_out_loss=None))
        self.rounds += 1

    @rule()
    def superlink_ends(self) -> None:
        self.control.runs = {}
        self.submission.lost("the SuperLink ended")

    @rule(down=st.booleans())
    def superlink_answers(self, down: bool) -> None:
        self.control.down = down

    @rule(answer=st.sampled_from([None, None, refused(400, "no such thing"), refused(503)]))
    def start_is_answered_with(self, answer: httpx.HTTPError | None) -> None:
        self.control.refuses = answer

    @rule()
    def operator_stops_it(self) -> None:
        self.stop_asked = True
        self.submission.run = WantedRun(config=CONFIG, stopped=True)

    @invariant()
    def one_session_at_a_time_and_no_more_than_allowed(self) -> None:
        if not hasattr(self, "control"):
            return
        assert len(self.control.running) <= 1
        assert len(self.control.runs) <= self.submission.most_restarts + 1
        assert self.submission.restarts <= self.submission.most_restarts

    @invariant()
    def an_ending_has_its_reason(self) -> None:
        if not hasattr(self, "submission"):
            return
        state, reason = self.submission.state, self.submission.reason
        if state == "failed":
            assert reason.split(":")[0] in self.named
        if state == "completed":
            assert "" in self.named
        if state == "stopped":
            assert self.stop_asked
        if state == "given_up":
            assert self.submission.restarts == self.submission.most_restarts
            assert reason.startswith(f"started {self.submission.restarts + 1} times; the last one: ")


TestDriven = Driven.TestCase
TestDriven.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_waiting_grows_and_the_run_is_given_up_with_the_last_reason(tmp_path: Path) -> None:
    clock, control = Clock(), FakeControl()
    one, waits = submission(tmp_path / "lungs", most_restarts=9, clock=clock), []
    one.advance(control, sites=4)  # type: ignore[arg-type]
    while not one.has_ended:
        (number,) = control.running
        control.end(number, "No heartbeat received.")
        began = clock.now
        one.advance(control, sites=4)  # type: ignore[arg-type]
        while one.state == "restarting":
            clock.sleep(0.5)
            one.advance(control, sites=4)  # type: ignore[arg-type]
        waits.append(clock.now - began)
    assert waits[:-1] == [min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**n) for n in range(9)]
    assert (one.state, one.reason) == ("given_up", "started 10 times; the last one: No heartbeat received.")


def test_an_ending_of_an_earlier_session_is_not_this_ones(tmp_path: Path) -> None:
    write(tmp_path / "lungs", ended("failed", "FT607: long ago"))
    control, one = FakeControl(), submission(tmp_path / "lungs")
    one.advance(control, sites=4)  # type: ignore[arg-type]
    control.end(control.running[0], "No heartbeat received.")
    one.advance(control, sites=4)  # type: ignore[arg-type]
    assert one.state == "restarting"


def test_a_session_that_could_not_begin_has_said_why_and_is_not_tried_again(tmp_path: Path) -> None:
    write(tmp_path / "lungs", ended("completed"))
    before = (tmp_path / "lungs" / "rounds.jsonl").read_bytes()
    control, one = FakeControl(), submission(tmp_path / "lungs")
    one.advance(control, sites=4)  # type: ignore[arg-type]
    control.end(control.running[0], REFUSAL)
    one.advance(control, sites=4)  # type: ignore[arg-type]
    assert one.state == "failed"
    assert one.reason.startswith("FT711: the run was started with seed=1")
    assert (tmp_path / "lungs" / "rounds.jsonl").read_bytes() == before


def test_an_end_that_was_written_before_the_superlink_died_stands(tmp_path: Path) -> None:
    control, one = FakeControl(), submission(tmp_path / "lungs", most_restarts=0)
    one.advance(control, sites=4)  # type: ignore[arg-type]
    write(tmp_path / "lungs", ended("completed"))
    one.lost("the SuperLink ended")
    assert one.state == "completed"


def test_a_start_whose_answer_was_lost_leaves_no_second_session(tmp_path: Path) -> None:
    class Lossy(FakeControl):
        lost = False

        def start_run(self, bundle: bytes, sha256: str, values: dict[str, str | int]) -> int:
            number = super().start_run(bundle, sha256, values)
            if not self.lost:
                self.lost = True
                raise httpx.ReadTimeout("no answer")
            return number

    control, one = Lossy(), submission(tmp_path / "lungs")
    with pytest.raises(httpx.ReadTimeout):
        one.advance(control, sites=4)  # type: ignore[arg-type]
    one.advance(control, sites=4)  # type: ignore[arg-type]
    assert (len(control.runs), len(control.running)) == (2, 1)


def test_a_run_waits_until_a_site_is_enrolled(tmp_path: Path) -> None:
    control, one = FakeControl(), submission(tmp_path / "lungs")
    one.advance(control, sites=0)  # type: ignore[arg-type]
    assert (one.state, control.calls) == ("waiting", [])


@pytest.mark.parametrize("state", ["waiting", "running", "restarting"])
def test_a_run_can_be_stopped_in_every_state(tmp_path: Path, state: str) -> None:
    control, one = FakeControl(), submission(tmp_path / "lungs")
    if state != "waiting":
        one.advance(control, sites=4)  # type: ignore[arg-type]
    if state == "restarting":
        control.end(control.running[0], "killed")
        one.advance(control, sites=4)  # type: ignore[arg-type]
    assert one.state == state
    one.run = WantedRun(config=CONFIG, stopped=True)
    one.advance(control, sites=4)  # type: ignore[arg-type]
    assert one.state == "stopped"
    assert control.running == []


def test_a_session_that_found_an_older_one_at_work_is_tried_again(tmp_path: Path) -> None:
    control, one = FakeControl(), submission(tmp_path / "lungs")
    one.advance(control, sites=4)  # type: ignore[arg-type]
    details = "ServerApp failed with exception: FT702: another process is writing this run: pid 7"
    control.end(control.running[0], details)
    one.advance(control, sites=4)  # type: ignore[arg-type]
    assert one.state == "restarting"
