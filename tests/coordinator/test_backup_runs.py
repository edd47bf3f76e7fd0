"""A run that was backed up while it was written goes on, from no earlier round than the backup began with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save
from support import tiny_federation
from support.enrolment import Coordinator

import fedtune
from fedtune.coordinator import backup_runs
from fedtune.coordinator.backup import back_up
from fedtune.coordinator.backup_runs import OpenFile, run_files
from fedtune.coordinator.restore import restore
from fedtune.errors import FederationError
from fedtune.observability.events import (
    Event,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    SecureSum,
    read_events,
)
from fedtune.observability.run_directory import RunDirectory, checkpoint_rounds
from fedtune.secagg.journal import ANSWER, CLOSED, OPENED, ServerJournal, read_journal
from fedtune.secagg.rounds import discard_journals, journal_path


@dataclass
class Writer:
    """Writes a run as a coordinator does, one step at a time."""

    run: RunDirectory
    finished: int = 0
    records: int = 0

    @property
    def secure(self) -> Path:
        return self.run.path / "secagg"

    def steps(self) -> Iterator[None]:
        self.secure.mkdir()
        for number in range(1, 10**6):
            self.run.events.append(RoundStarted(round=number, clients=("a",), factors=("A", "B")))
            yield
            journal = ServerJournal(journal_path(self.secure, round_number=number, attempt=1))
            for kind in (OPENED, ANSWER, ANSWER, CLOSED):
                journal.append(kind, b"%d" % number * 50, durable=False)
                self.records += 1
                yield
            with (self.secure / "transcripts.jsonl").open("a") as file:
                file.write(json.dumps({"round": number}) + "\n")
            yield
            adapter = save({"a": np.full(3, number, np.float32)})
            state = json.dumps({"v": 1, "round": number}).encode()
            self.run.write_checkpoint(number, {"adapter.safetensors": adapter, "state.json": state})
            yield
            for old in self.run.checkpoints()[:-2]:
                for path in sorted(self.run.checkpoint_path(old).iterdir()):
                    path.unlink()
                    yield
                shutil.rmtree(self.run.checkpoint_path(old))
                yield
            self.run.events.append(RoundFinished(round=number, held_out_loss=None))
            self.finished, self.records = number, 0
            yield
            discard_journals(self.secure, round_number=number)
            yield


def resumes_after(run: Path) -> int:
    """The round after which a run goes on, by the rule of `fedtune.simulation.simulate`."""
    ended = {event.round for event in read_events(run / "rounds.jsonl") if isinstance(event, RoundFinished)}
    return max(ended.intersection(checkpoint_rounds(run)), default=0)


def copied(folder: Path, to: Path) -> Path:
    """What a backup would hold of the run."""
    for held in run_files(folder):
        target = to / held.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(held.file.read(held.size))
    return to / "runs" / "pilot"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(before=st.integers(0, 60), between=st.lists(st.integers(0, 25) | st.just(0), max_size=40))
def test_whatever_the_run_writes_between_two_files_a_copy_goes_on_from_where_it_began(
    before: int, between: list[int], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("coordinator")
    pauses = iter(between)
    real = backup_runs.opened

    def opened_while_it_writes(here: Path, name: str) -> OpenFile:
        for _ in range(next(pauses, 0)):
            next(steps)
        return real(here, name)

    with RunDirectory.create(folder / "runs" / "pilot") as run:
        writer = Writer(run)
        steps = writer.steps()
        for _ in range(before):
            next(steps)
        began, records = writer.finished, writer.records
        monkeypatch.setattr(backup_runs, "_WAIT_SECONDS", 0)
        monkeypatch.setattr(backup_runs, "opened", opened_while_it_writes)
        copy = copied(folder, folder / "copy")
        monkeypatch.undo()
    goes_on = resumes_after(copy)
    assert began <= goes_on <= writer.finished
    if goes_on:
        path = copy / "checkpoints" / f"{goes_on:04}"
        assert json.loads((path / "state.json").read_text()) == {"v": 1, "round": goes_on}
        np.testing.assert_array_equal(load_file(path / "adapter.safetensors")["a"], np.full(3, goes_on))
    journals = {path.name: list(read_journal(path)) for path in copy.glob("secagg/*.journal")}
    if goes_on == began and records:
        assert len(journals[f"{began + 1:04}-01.journal"]) >= records, "an attempt does not go back"
    for line in (copy / "secagg" / "transcripts.jsonl").read_text().splitlines() if began else ():
        json.loads(line)


def test_events_that_were_read_before_the_checkpoints_could_not_be_gone_on_from(tmp_path: Path) -> None:
    """Why the order matters: this is the copy that is not made."""
    with RunDirectory.create(tmp_path / "run") as run:
        steps = Writer(run).steps()
        for _ in range(45):
            next(steps)
        events = (run.path / "rounds.jsonl").read_bytes()
        for _ in range(45):
            next(steps)
        shutil.copytree(run.path / "checkpoints", tmp_path / "copy" / "checkpoints")
        (tmp_path / "copy" / "rounds.jsonl").write_bytes(events)
    assert resumes_after(tmp_path / "copy") == 0


def test_a_run_that_never_holds_still_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RunDirectory.create(tmp_path / "runs" / "pilot") as run:
        writer = Writer(run)
        steps = writer.steps()
        real = backup_runs.opened

        def opened_a_round_later(here: Path, name: str) -> OpenFile:
            until = writer.finished + 1
            while writer.finished < until:
                next(steps)
            return real(here, name)

        monkeypatch.setattr(backup_runs, "_WAIT_SECONDS", 0)
        monkeypatch.setattr(backup_runs, "opened", opened_a_round_later)
        with pytest.raises(FederationError, match="checkpoints changed each time they were looked at"):
            list(run_files(tmp_path))


def assert_same_end(one: Path, other: Path, *, within: float) -> None:
    first, second = (load_file(path / "adapter" / "adapter_model.safetensors") for path in (one, other))
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=0, atol=within, strict=True)


def is_end_of(kind: type[Event], number: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, kind) and getattr(event, "round", None) == number


@pytest.mark.usefixtures("cheap_scrypt")
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "secure"])
def test_a_run_that_was_backed_up_in_any_state_ends_the_same_after_a_restore(
    secure: bool, tmp_path: Path, tiny_model_dir: Path
) -> None:
    hub = Coordinator(tmp_path)
    hub.begin()
    (hub.folder / "runs").mkdir()
    settings = {"runs_dir": hub.folder / "runs", "federation__rounds": 3, "evaluation__generations": 0}
    if secure:
        settings |= {"secagg": "on", "secagg__k_min": 3}
    moments = [
        is_end_of(RoundFinished, 1),
        is_end_of(RoundAggregated, 2),
        is_end_of(SecureSum if secure else RoundFinished, 2 if secure else 3),
    ]
    made: list[Path] = []

    def watch(event: Event) -> None:
        if any(moment(event) for moment in moments):
            out = tmp_path / f"{len(made)}.backup"
            made.append(back_up(hub.folder, out, passphrase=b"six random words", now=datetime.now(UTC)).path)

    def overrides(**more: object) -> list[str]:
        return tiny_federation.tiny_overrides(tmp_path, tiny_model_dir, **{**settings, **more})

    whole = fedtune.simulate(overrides(), observers=[watch])
    assert len(made) == len(moments)
    for backup in made:
        back = backup.with_suffix("")
        restore(backup, back, passphrase=b"six random words")
        again = fedtune.simulate(overrides(runs_dir=back / "runs", resume="true"))
        assert again.summary["status"] == "completed"
        # A sum is encoded with random rounding, so a secure round that is made again is equal up to that.
        assert_same_end(whole.path, again.path, within=1e-6 if secure else 0)
