"""What of a run's log its people are told, and what not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtune.coordinator.notices import RunNotices
from fedtune.coordinator.notify import Notice
from fedtune.coordinator.status import RunState, RunStatus
from fedtune.observability.events import Event, EventLog, GateJudged, QuorumMissed, SecureSum


def judged(*, passed: bool) -> GateJudged:
    return GateJudged(
        round=3,
        passed=passed,
        reason=None if passed else "the held-out loss is 4.1000",
        loss=4.1,
        last_good_loss=2.5,
        last_good_round=2,
    )


def summed(*, opened: bool) -> SecureSum:
    return SecureSum(
        round=3,
        opened=opened,
        reason=None if opened else "2 of 3 sites answered",
        clients=("ear", "eye", "heart"),
        attempts=1,
        seconds=1.0,
        uplink_bytes=1,
        downlink_bytes=1,
    )


@pytest.mark.parametrize(
    ("event", "kind", "what"),
    [
        (
            QuorumMissed(round=3, attempt=1, attempts=2, reason="one is away"),
            "quorum_lost",
            "attempt 1 of 2 lacks its quorum: one is away",
        ),
        (judged(passed=False), "round_lost", "the gate took it back: the held-out loss is 4.1000"),
        (summed(opened=False), "round_lost", "it is burnt: 2 of 3 sites answered"),
        (judged(passed=True), None, None),
        (summed(opened=True), None, None),
    ],
)
def test_a_round_that_lacks_its_quorum_or_gave_nothing_is_told_of_once(
    tmp_path: Path, event: Event, kind: str | None, what: str | None
) -> None:
    told: list[Notice] = []
    path = tmp_path / "rounds.jsonl"
    notices = RunNotices(path, federation="lungs", run="pilot", give=told.append)
    with EventLog(path) as writer:
        writer.append(event)
    notices.look()
    notices.look()
    expected = [] if kind is None else [(kind, "lungs", "pilot", 3, what)]
    assert [(each.kind, each.federation, each.run, each.round, each.what) for each in told] == expected


@pytest.mark.parametrize(
    ("state", "kind"), [("completed", "finished"), ("failed", "failed"), ("stopped", None)]
)
def test_an_end_is_told_of_unless_the_coordinator_made_it(
    tmp_path: Path, state: RunState, kind: str | None
) -> None:
    told: list[Notice] = []
    notices = RunNotices(tmp_path / "rounds.jsonl", federation="lungs", run="pilot", give=told.append)
    notices.ended(RunStatus(name="pilot", state=state, flower_run=1, restarts=0, reason="why"))
    assert [each.kind for each in told] == ([] if kind is None else [kind])
