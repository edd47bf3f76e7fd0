"""A session writes how it ended whatever happens, and one that may not begin changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.errors import FederationError, Problem, RunError
from fedtune.federation.checkpoint import Checkpoint, save_checkpoint
from fedtune.federation.session import RunSession
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import initial_adapter
from fedtune.observability.events import RoundFinished, RunFinished, RunStarted, read_events
from fedtune.observability.run_directory import RunDirectory

Overrides = Callable[..., list[str]]


@pytest.fixture
def settings(tmp_path: Path, tiny_model_dir: Path) -> Config:
    texts = ["experiment=demo", f"model.name={tiny_model_dir}", "model.quantization=none"]
    return compose(
        [*texts, "model.compute_dtype=float32", "federation.rounds=1", "name=lungs", "resume=true"]
    )


def session(folder: Path, config: Config, **options: object) -> RunSession:
    run = RunDirectory.create(folder / "run", resume=True)
    return RunSession(config=config, run=run, started=1.0, **options)  # type: ignore[arg-type]


def do_the_round(held: RunSession) -> None:
    config = held.config
    adapter = initial_adapter(adapter_spec(config.model, config.peft), config.seed)
    save_checkpoint(held.run, Checkpoint(round=1, adapter=adapter))
    held.run.events.append(RoundFinished(round=1, held_out_loss=None))


def complete(folder: Path, config: Config) -> None:
    held = session(folder, config)
    with held:
        do_the_round(held)


def log(folder: Path) -> Path:
    return folder / "run" / "rounds.jsonl"


def ending(folder: Path) -> RunFinished:
    last = read_events(log(folder))[-1]
    assert isinstance(last, RunFinished)
    return last


def test_a_complete_session_leaves_adapter_card_and_report(tmp_path: Path, settings: Config) -> None:
    complete(tmp_path, settings)
    assert ending(tmp_path).status == "completed"
    for name in ("adapter/adapter_model.safetensors", "adapter/README.md", "report.html"):
        assert (tmp_path / "run" / name).is_file()
    assert "lungs" in (tmp_path / "run" / "adapter" / "README.md").read_text()


def test_another_configuration_is_refused_and_the_complete_runs_folder_stays_as_it_was(
    tmp_path: Path, settings: Config
) -> None:
    complete(tmp_path, settings)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    with (
        pytest.raises(RunError, match="FT711: the run was started with seed=") as caught,
        session(tmp_path, replace(settings, seed=settings.seed + 1)),
    ):
        pytest.fail("it must not begin")
    assert [problem.code for problem in caught.value.problems] == ["FT711"]
    after = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    assert after == before
    # The folder is free again, and the right configuration goes on with it.
    with session(tmp_path, settings):
        pass
    assert ending(tmp_path).status == "completed"


NAMED = FederationError(Problem(code="FT607", what="too few", where="round 1", fix="mend them"))


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (NAMED, "failed", "FT607: too few"),
        (ZeroDivisionError("secret words of a row"), "failed", "unexpected ZeroDivisionError"),
        (KeyboardInterrupt(), "interrupted", "Stopped from the keyboard."),
        (SystemExit(0), "interrupted", "Its process was told to end."),
        (ConnectionError("gone"), "interrupted", "ConnectionError: gone"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_ending_is_written_whatever_happens(
    tmp_path: Path, settings: Config, error: BaseException, status: str, reason: str
) -> None:
    with pytest.raises(type(error)), session(tmp_path, settings, passing=(ConnectionError,)):
        raise error
    last = ending(tmp_path)
    assert last.status == status
    assert str(last.reason).startswith(reason)
    assert (tmp_path / "run" / "report.html").is_file()
    assert not (tmp_path / "run" / "adapter").exists()
    with RunDirectory.create(tmp_path / "run", resume=True):
        pass  # nobody holds it any more


def test_completed_is_not_said_of_a_run_whose_adapter_could_not_be_written(
    tmp_path: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RunError(Problem(code="FT705", what="no space left", where="adapter", fix="free some"))

    monkeypatch.setattr("fedtune.federation.session.save_global", full)
    held = session(tmp_path, settings)
    with pytest.raises(RunError, match="FT705"), held:
        do_the_round(held)
    endings = [event.status for event in read_events(log(tmp_path)) if isinstance(event, RunFinished)]
    assert endings == ["failed"]
    monkeypatch.undo()
    with (again := session(tmp_path, settings)):
        assert again.is_complete
    assert ending(tmp_path).status == "completed"


def test_where_the_disk_refuses_even_the_ending_the_first_error_stands(
    tmp_path: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = session(tmp_path, settings)

    def full(_: object) -> None:
        raise RunError(Problem(code="FT705", what="no space left", where="log", fix="free some"))

    def fail() -> None:
        with held:
            monkeypatch.setattr(held.run.events, "append", full)
            raise NAMED

    with pytest.raises(FederationError, match="FT607"):
        fail()


def test_a_session_goes_on_after_the_last_round_that_has_a_checkpoint(
    tmp_path: Path, settings: Config
) -> None:
    held = session(tmp_path, settings)

    def killed_before_its_checkpoint() -> None:
        with held:
            held.run.events.append(RoundFinished(round=0, held_out_loss=None))
            held.run.events.append(RoundFinished(round=1, held_out_loss=None))
            raise SystemExit(1)

    with pytest.raises(SystemExit):
        killed_before_its_checkpoint()
    with pytest.raises(SystemExit), session(tmp_path, settings) as _:
        raise SystemExit(1)
    starts = [event for event in read_events(log(tmp_path)) if isinstance(event, RunStarted)]
    assert [start.resumed_after for start in starts] == [None, None]


def test_observers_hear_every_event(tmp_path: Path, settings: Config) -> None:
    heard: list[object] = []
    held = session(tmp_path, settings, observers=[heard.append])
    with held:
        do_the_round(held)
    assert [type(event).__name__ for event in heard] == ["RunStarted", "RoundFinished", "RunFinished"]
