"""What the operator approved and what was accepted stays written down, whatever is cut off, damaged or
killed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedtune.errors import MachineError, RunError
from fedtune.site.accepted import AcceptedLog
from fedtune.site.approvals import Approvals, Subject, read_standing, write_standing
from fedtune.site.policy_file import example_path, parse_policy
from fedtune.site.records import DamagedRecordError, append_record, read_records

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
POLICY = parse_policy(
    yaml.safe_dump(
        yaml.safe_load(example_path().read_text().replace("20:00", '"20:00"')) | {"timezone": "Etc/UTC"}
    ),
    where="here",
)


def subject(name: str = "lungs", **changed: str) -> Subject:
    return Subject(**({"run": name, "config": "c", "base_model": "m", "bundle": "b"} | changed))


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    return Approvals(tmp_path / "state" / "approvals.jsonl", tmp_path / "state" / "pending")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "approvals.jsonl"


# What is approved


def test_what_was_approved_is_approved_and_nothing_that_differs_in_anything(approvals: Approvals) -> None:
    approvals.approve(subject(), operator="me")
    assert approvals.approved(subject())
    for key in ("run", "config", "base_model", "bundle"):
        assert not approvals.approved(subject(**{key: "x"}) if key != "run" else subject("x"))
    assert len({subject().id, subject("x").id, subject(config="x").id, subject(bundle="x").id}) == 4


def test_a_run_that_waits_keeps_its_time_and_waits_no_more_once_approved(
    approvals: Approvals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedtune.site.approvals._now", lambda: "2026-11-22T12:00:00+00:00")
    approvals.ask(subject(), ("one", "two"))
    monkeypatch.setattr("fedtune.site.approvals._now", lambda: "2026-11-22T13:00:00+00:00")
    approvals.ask(subject(), ("three",))
    approvals.ask(subject("later"), ())
    first, second = approvals.waiting()
    assert (first.subject, first.since[11:13], first.summary) == (subject(), "12", ("one", "two"))
    assert second.subject.run == "later"
    approvals.approve(subject(), operator="me")
    assert [each.subject.run for each in approvals.waiting()] == ["later"]


def test_at_most_100_runs_wait(approvals: Approvals) -> None:
    for number in range(120):
        approvals.ask(subject(f"run-{number:03}"), ())
    assert len(approvals.waiting()) == 100
    approvals.approve(approvals.waiting()[0].subject, operator="me")
    assert len(approvals.waiting()) == 99
    approvals.ask(subject("run-120"), ())
    assert len(approvals.waiting()) == 100


def test_a_pending_file_that_is_damaged_is_named(approvals: Approvals, path: Path) -> None:
    approvals.ask(subject(), ())
    for text in (b"", b"{", b"[]", b'{"v": 2}', b'{"v": 1, "run": 4}', b"\xff"):
        (path.parent / "pending" / "x.json").write_bytes(text)
        with pytest.raises(MachineError, match="FT684"):
            approvals.waiting()


def test_files_are_their_owners_alone(approvals: Approvals, path: Path) -> None:
    approvals.approve(subject(), operator="me")
    assert path.stat().st_mode & 0o777 == 0o600


# Lines that were cut off, and damage


@given(cut=st.integers(1, 400), name=st.text(min_size=1, max_size=20))
def test_a_line_that_was_cut_off_takes_no_other_line_with_it(
    tmp_path_factory: pytest.TempPathFactory, cut: int, name: str
) -> None:
    folder = tmp_path_factory.mktemp("approvals")
    path = folder / "approvals.jsonl"
    approvals = Approvals(path, folder / "pending")
    approvals.approve(subject("one"), operator="me")
    whole = path.read_bytes()
    approvals.approve(subject("two"), operator=name)
    written = path.read_bytes()
    path.write_bytes(written[: max(len(whole), len(written) - cut)])
    kept = path.read_bytes() in (written, written[:-1])
    assert approvals.approved(subject("one"))
    assert approvals.approved(subject("two")) == kept
    approvals.approve(subject("three"), operator="me")
    assert approvals.approved(subject("one"))
    assert approvals.approved(subject("three"))
    assert approvals.approved(subject("two")) == kept


@pytest.mark.parametrize(
    "line", ["{}", '{"v": 2}', '{"v": 1}', '{"v": 1, "run": 4, "config": "", "base_model": "", "bundle": ""}']
)
def test_a_line_that_says_something_else_is_damage_and_nothing_is_approved(
    approvals: Approvals, path: Path, line: str
) -> None:
    approvals.approve(subject(), operator="me")
    path.write_bytes(path.read_bytes() + line.encode() + b"\n" + path.read_bytes())
    with pytest.raises(MachineError) as caught:
        approvals.approved(subject())
    assert caught.value.problems[0].code == "FT684"
    assert caught.value.problems[0].where == f"{path}, line 2"


def test_a_file_that_cannot_be_read_is_damage(approvals: Approvals, path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(MachineError, match="FT684"):
        approvals.approved(subject())
    with pytest.raises(RunError, match="FT707"):
        approvals.approve(subject(), operator="me")


@given(st.binary(max_size=300))
def test_whatever_the_bytes_are_records_are_read_or_damaged(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("records") / "x.jsonl"
    path.write_bytes(data)
    try:
        found = read_records(path, lambda record: record)
    except DamagedRecordError:
        found = []
    assert all(record["v"] == 1 for record in found)
    append_record(path, {"new": 1}, kept="all")
    assert path.read_bytes().startswith(data)
    assert json.loads(path.read_bytes().split(b"\n")[-2]) == {"v": 1, "new": 1}


# Whether the site takes part


def test_a_site_that_never_said_anything_takes_part_and_the_last_word_counts(tmp_path: Path) -> None:
    path = tmp_path / "state" / "standing.json"
    assert read_standing(path).state == "open"
    for state in ("paused", "open", "left"):
        write_standing(path, state, operator="me", reason="because")
        standing = read_standing(path)
        assert (standing.state, standing.operator, standing.reason) == (state, "me", "because")
        assert datetime.fromisoformat(standing.time).tzinfo is not None


@given(st.one_of(st.binary(max_size=200), st.recursive(st.none() | st.text(), st.lists).map(json.dumps)))
def test_a_standing_that_is_damaged_is_no_permission(
    tmp_path_factory: pytest.TempPathFactory, data: bytes | str
) -> None:
    path = tmp_path_factory.mktemp("standing") / "standing.json"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(MachineError, match="FT684"):
        read_standing(path)


# What was accepted


def test_requests_count_by_kind_on_the_day_of_the_policys_zone(tmp_path: Path) -> None:
    log = AcceptedLog(tmp_path / "accepted.jsonl")
    assert log.usage(POLICY, NOON).rounds_today == 0
    log.add("train", NOON - timedelta(hours=13), run="a", round_number=1)
    log.add("train", NOON - timedelta(hours=11), run="a", round_number=2)
    log.add("evaluate", NOON, run="a", round_number=2)
    used = AcceptedLog(tmp_path / "accepted.jsonl").usage(POLICY, NOON)
    assert (used.rounds_today, used.evaluations_today) == (1, 1)


def test_old_requests_are_forgotten_once_the_file_is_large_and_none_of_today(tmp_path: Path) -> None:
    path = tmp_path / "accepted.jsonl"
    log = AcceptedLog(path)
    log.compact(NOON)
    log.add("train", NOON - timedelta(days=9), run="a", round_number=1)
    log.compact(NOON)
    assert len(path.read_bytes().splitlines()) == 1
    line = path.read_bytes()
    path.write_bytes(line * (2**20 // len(line) + 1))
    log.add("train", NOON, run="a", round_number=2)
    log.compact(NOON)
    assert len(path.read_bytes().splitlines()) == 1
    assert log.usage(POLICY, NOON).rounds_today == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"v": 1, "kind": "train", "time": "2026-11-22T12:00:00"}',
        '{"v": 1, "kind": "nap", "time": "2026-11-22T12:00:00+00:00"}',
        '{"v": 1, "kind": ["train"], "time": "2026-11-22T12:00:00+00:00"}',
        '{"v": 1, "kind": "train", "time": 4}',
        "{}",
    ],
)
def test_a_damaged_record_of_requests_ends_acceptance(tmp_path: Path, line: str) -> None:
    path = tmp_path / "accepted.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(MachineError) as caught:
        AcceptedLog(path).usage(POLICY, NOON)
    assert caught.value.problems[0].where == f"{path}, line 1"


# Several processes, and one that is killed


def approve_many(folder: Path, name: str, count: int) -> None:
    approvals = Approvals(folder / "approvals.jsonl", folder / "pending")
    log = AcceptedLog(folder / "accepted.jsonl")
    for number in range(count):
        approvals.ask(subject(f"{name}-{number % 40}"), ("a line",) * 20)
        approvals.approve(subject(f"{name}-{number}"), operator=name)
        log.add("train", NOON, run=name, round_number=number)


def test_two_processes_lose_no_line_of_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    both = [context.Process(target=approve_many, args=(tmp_path, name, 100)) for name in ("one", "two")]
    for each in both:
        each.start()
    for each in both:
        each.join(timeout=120)
        assert each.exitcode == 0
    approvals = Approvals(tmp_path / "approvals.jsonl", tmp_path / "pending")
    assert all(approvals.approved(subject(f"{name}-{n}")) for name in ("one", "two") for n in range(100))
    assert AcceptedLog(tmp_path / "accepted.jsonl").usage(POLICY, NOON).rounds_today == 200


FOREVER = """
import sys, itertools
from datetime import UTC, datetime
from pathlib import Path
from fedtune.site.accepted import AcceptedLog
from fedtune.site.approvals import Approvals, Subject, write_standing
folder = Path(sys.argv[1])
approvals = Approvals(folder / "approvals.jsonl", folder / "pending")
log = AcceptedLog(folder / "accepted.jsonl")
for number in itertools.count():
    subject = Subject(run=f"run-{number}", config="c" * 500, base_model="m", bundle="b")
    approvals.ask(subject, ("a line",) * 50)
    approvals.approve(subject, operator="me")
    log.add("train", datetime.now(UTC), run="a", round_number=number)
    write_standing(folder / "standing.json", "paused", operator="me", reason="x" * 5000)
    print(number, flush=True)
"""


@pytest.mark.parametrize("seed", range(3))
def test_whoever_is_killed_in_the_middle_leaves_files_that_hold_what_was_said_before(
    tmp_path: Path, seed: int
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + seed * 0.037)
        os.kill(process.pid, signal.SIGKILL)
        said = [int(line) for line in process.stdout.read().split()]
    approvals = Approvals(tmp_path / "approvals.jsonl", tmp_path / "pending")
    for number in [0, *said]:
        assert approvals.approved(Subject(run=f"run-{number}", config="c" * 500, base_model="m", bundle="b"))
    assert len(approvals.waiting()) <= 1
    assert read_standing(tmp_path / "standing.json").state == "paused"
    now = datetime.now(UTC)
    assert AcceptedLog(tmp_path / "accepted.jsonl").usage(POLICY, now).rounds_today >= len(said)
