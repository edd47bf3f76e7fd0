"""Runs that wait for a site's operator."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtune.site import approvals as module
from fedtune.site.approvals import Approvals, Subject


def subject(number: int) -> Subject:
    return Subject(run=f"run{number}", config="c" * 64, base_model="b" * 64, bundle="d" * 64)


def test_very_many_runs_that_wait_do_not_hide_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(f"2026-01-01T00:{number // 60:02}:{number % 60:02}+00:00" for number in range(500))
    monkeypatch.setattr(module, "_now", lambda: next(clock))
    approvals = Approvals(tmp_path / "approvals.jsonl", tmp_path / "pending")
    for number in range(250):
        approvals.ask(subject(number), ("what it would do",))
    approvals.ask(subject(200), ("what it would do",))  # waits already, and keeps its place
    assert [each.subject.run for each in approvals.waiting()] == [
        f"run{number}" for number in range(150, 250)
    ]
    approvals.approve(subject(249), operator="me")
    assert approvals.approved(subject(249))
    assert len(approvals.waiting()) == 99
