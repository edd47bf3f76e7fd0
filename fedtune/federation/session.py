"""One process's part of a run: its begin and its end are written down, whatever happens in between.

``fedtune simulate`` holds one, and the ServerApp of a deployment. What the rounds do in the middle is theirs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import fedtune
from fedtune.aggregation.carrying import side_car_of
from fedtune.aggregation.clusters import clusters_of
from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json, config_to_yaml
from fedtune.errors import FedtuneError, Problem, RunError
from fedtune.export.adapter import save_global
from fedtune.export.card import write_model_card
from fedtune.federation.checkpoint import Checkpoint, load_checkpoint
from fedtune.models.adapted import adapter_spec
from fedtune.models.hardware import machine_facts
from fedtune.observability.events import (
    Event,
    RoundFinished,
    RunFinished,
    RunStarted,
    Sites,
    effective_events,
    read_events,
)
from fedtune.observability.memory import peak_memory_mib
from fedtune.observability.report_html import write_report
from fedtune.observability.run_directory import RunDirectory
from fedtune.observability.summary import summarise

__all__ = ["FREE_ON_RESUME", "RunSession"]

Observer = Callable[[Event], None]

FREE_ON_RESUME = frozenset({"resume", "baselines", "runs_dir"})
"""Keys that may differ when a run goes on: they do not change what its rounds compute."""


@dataclass(kw_only=True)
class RunSession:
    """Entering it writes how the session begins; leaving it how it ended, the adapter of a complete run, and
    the report.

    Guarantees:
        * A session that may not begin (FT711) changes nothing: what the run's log says stays true.
        * One that began writes how it ended, unless it is killed or the disk refuses.
        * ``completed`` is written after the adapter was: whoever reads it finds one.

    Attributes:
        config: The resolved configuration.
        run: The run directory, open for writing.
        started: When the session began, in unix seconds.
        observers: Told of each event as it is written.
        passing: Errors that say nothing of the run, such as a lost connection: it was interrupted by them.
    """

    config: Config
    run: RunDirectory
    started: float
    observers: Sequence[Observer] = ()
    passing: tuple[type[BaseException], ...] = ()

    def __enter__(self) -> None:
        """Write the configuration and after which round this session goes on.

        Raises:
            RunError: FT711, the run was started with another configuration; FT705 or FT707.
        """
        self.observe()
        try:
            self.begin()
        except BaseException:
            self.run.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                try:
                    self._complete()
                except BaseException as failed:
                    self._fail(failed)
                    raise
                self._report()
            else:
                self._fail(error)
        finally:
            self.run.close()

    def _complete(self) -> None:
        ending = self._ended("completed", None)
        self._export(ending)
        self.run.events.append(ending)

    def _fail(self, error: BaseException) -> None:
        # The disk may be what failed: then the log ends with what it has, and the error stands.
        with suppress(RunError):
            self.run.events.append(self._ended(*self.ending(error)))
            self._report()

    def begin(self) -> None:
        """Write what entering writes; for a session that makes no adapter and writes its own end.

        Raises:
            RunError: As entering it; the run directory stays open.
        """
        done = self._complete_rounds() if self.run.resumed else None
        self.run.write_config(config_to_yaml(self.config))
        self.run.events.append(
            RunStarted(
                time=self.started,
                name=self.config.name,
                config=_values(self.config),
                version=fedtune.__version__,
                machine=machine_facts(),
                resumed_after=done,
            )
        )

    @property
    def is_complete(self) -> bool:
        """Whether no round is missing."""
        starts = [event for event in read_events(self.run.events.path) if isinstance(event, RunStarted)]
        return starts[-1].resumed_after == self.config.federation.rounds

    def final(self) -> Checkpoint:
        """Return the global adapter after the last round, with what stands beside it."""
        spec = adapter_spec(self.config.model, self.config.peft)
        return load_checkpoint(self.run, self.config.federation.rounds, spec)

    def events(self) -> list[Event]:
        """Return what has happened and still counts."""
        return effective_events(read_events(self.run.events.path))

    def observe(self) -> None:
        """Let the observers be told of events of the run directory that is open now."""
        for observer in self.observers:
            self.run.events.observe(observer)

    def _complete_rounds(self) -> int | None:
        """Return the last round that is complete in the log and has a checkpoint; None for no round."""
        before = [event for event in read_events(self.run.events.path) if isinstance(event, RunStarted)]
        if before:
            _require_same_config(before[-1].config, _values(self.config), where=str(self.run.path))
        finished = {event.round for event in self.events() if isinstance(event, RoundFinished)}
        return max(finished.intersection(self.run.checkpoints()), default=None)

    def _export(self, ending: RunFinished) -> None:
        final = self.final()
        summary = summarise([*read_events(self.run.events.path), ending])
        spec = adapter_spec(self.config.model, self.config.peft)
        target = self.run.path / "adapter"
        save_global(final.adapter, side_car_of(final.carried), spec, self.config, target)
        write_model_card(target, summary, self.config)
        for number, cluster in enumerate(clusters_of(final.carried), 1):
            save_global(cluster.adapter, {}, spec, self.config, self.run.path / "clusters" / str(number))

    def _report(self) -> None:
        write_report(self.run.events.path, self.run.path / "report.html")

    def _ended(
        self, status: Literal["completed", "failed", "interrupted"], reason: str | None
    ) -> RunFinished:
        """Return the end; the federation's time runs from the start of loading to the last evaluation."""
        mine = [event for event in read_events(self.run.events.path) if event.time >= self.started]
        ends = [event.time for event in mine if isinstance(event, RoundFinished)]
        greeted = [event.time for event in mine if isinstance(event, Sites)]
        return RunFinished(
            status=status,
            reason=reason,
            seconds=max(ends, default=self.started) - self.started,
            load_seconds=min(greeted, default=self.started) - self.started,
            peak_memory_mib=peak_memory_mib(),
        )

    def ending(self, error: BaseException) -> tuple[Literal["failed", "interrupted"], str]:
        """Return how a session ends by an error, and the reason that is written."""
        if isinstance(error, KeyboardInterrupt):
            return "interrupted", "Stopped from the keyboard."
        if isinstance(error, SystemExit):
            return "interrupted", "Its process was told to end."
        if isinstance(error, self.passing):
            return "interrupted", f"{type(error).__name__}: {error}"
        return "failed", str(error) if isinstance(
            error, FedtuneError
        ) else f"unexpected {type(error).__name__}"


def _values(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config_to_json(config))
    return values


def _require_same_config(before: dict[str, Any], now: dict[str, Any], *, where: str) -> None:
    old, new = _flat(before), _flat(now)
    problems = [
        Problem(
            code="FT711",
            what=f"the run was started with {key}={old.get(key)!r}, now it is {new.get(key)!r}",
            where=f"{where}, {key}",
            fix=f"set {key} as it was, or start a run under another name",
        )
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and key not in FREE_ON_RESUME
    ]
    if problems:
        raise RunError(problems)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        flat.update(inner)
    return flat
