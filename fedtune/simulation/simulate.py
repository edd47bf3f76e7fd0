"""``fedtune simulate``: a whole federation on this machine, from overrides to a report.

data -> sites -> rounds (in this process, or on Ray) -> baselines -> samples -> adapter, card, report
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import fedtune
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json, config_to_yaml
from fedtune.errors import FedtuneError, Problem, RunError
from fedtune.export.adapter import save_adapter
from fedtune.export.card import write_model_card
from fedtune.federation.checkpoint import load_checkpoint
from fedtune.federation.client import build_client_app
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.server import run_federation
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import Adapter
from fedtune.models.hardware import machine_facts
from fedtune.observability.events import (
    Event,
    RoundFinished,
    RunFinished,
    RunStarted,
    Sites,
    StepProgress,
    effective_events,
    read_events,
)
from fedtune.observability.memory import peak_memory_mib
from fedtune.observability.report_html import write_report
from fedtune.observability.round_table import round_table
from fedtune.observability.run_directory import RunDirectory, events_path
from fedtune.observability.summary import summarise
from fedtune.simulation.baselines import missing_baselines, run_baseline
from fedtune.simulation.enrolment import enrol
from fedtune.simulation.grid import InProcessGrid
from fedtune.simulation.ray_engine import require_ray, run_on_ray
from fedtune.simulation.samples import generate_samples
from fedtune.simulation.sites import VirtualSites, load_sites
from fedtune.training.train import StepReport

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "simulate"]

Observer = Callable[[Event], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished run.

    Attributes:
        path: The run directory.
        config: The resolved configuration.
    """

    path: Path
    config: Config

    @property
    def adapter_dir(self) -> Path:
        """The federated adapter in PEFT format, for ``PeftModel.from_pretrained``."""
        return self.path / "adapter"

    @property
    def report(self) -> Path:
        """The self-contained HTML report."""
        return self.path / "report.html"

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What ``fedtune report RUN --json`` prints."""
        return summarise(read_events(events_path(self.path)))

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row a round: clients, losses, aggregation error, bytes, seconds."""
        import pandas as pd  # noqa: PLC0415  # half a second, for those who ask

        return pd.DataFrame(round_table(effective_events(read_events(events_path(self.path)))))


def simulate(overrides: Sequence[str] = (), *, observers: Sequence[Observer] = ()) -> Run:
    """Run a federation as the configuration says, or finish one that was cut short.

    Args:
        overrides: Hydra overrides, such as ``["experiment=demo", "federation.rounds=2"]``.
        observers: Called with each event as it happens, such as a progress display.

    Returns:
        The finished run.

    Raises:
        FedtuneError: With every problem that was found. Complete rounds are kept: ``resume=true`` goes on.
    """
    started = time.time()
    config = compose(overrides)
    config = replace(config, runs_dir=str(Path(config.runs_dir).absolute()))
    if config.backend.name == "ray":
        require_ray()
    sites = load_sites(config)
    path = Path(config.runs_dir) / config.name
    session = _Session(
        config=config,
        sites=sites,
        observers=observers,
        started=started,
        run=RunDirectory.create(path, resume=config.resume),
    )
    with session:
        session.begin()
        session.federate()
        session.compare_and_sample()
    return Run(path=path, config=config)


@dataclass(kw_only=True)
class _Session:
    """One process's part of a run. Leaving it writes how it ended, and the report, whatever happened."""

    config: Config
    sites: VirtualSites
    observers: Sequence[Observer]
    started: float
    run: RunDirectory

    def __enter__(self) -> None:
        self._observe()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._finish("completed", None)
                self._export()
                OptimizerMemory.forget(self.run.path / "sites")
                self._report()
            else:
                # The disk may be what failed: then the log ends with what it has, and the error stands.
                with suppress(RunError):
                    self._finish(*_ending(error))
                    self._report()
        finally:
            self.run.close()

    def begin(self) -> None:
        """Write the configuration and after which round this session goes on."""
        path, config = self.run.path, self.config
        done = self._complete_rounds() if self.run.resumed else None
        self.run.write_config(config_to_yaml(config))
        self.run.events.append(
            RunStarted(
                time=self.started,
                name=config.name,
                config=_values(config),
                version=fedtune.__version__,
                machine=machine_facts(),
                resumed_after=done,
            )
        )
        if config.secagg.enabled:
            enrol(path, config, self.sites.training_examples())

    def federate(self) -> None:
        """Run the rounds that are missing."""
        if self._round_after_which_it_goes_on() == self.config.federation.rounds:
            return
        clients, split = len(self.sites), self.sites.split()
        if self.config.backend.name == "ray":
            path = self.run.path
            self.run.close()  # the server in Flower's process writes it now
            try:
                run_on_ray(self.config, path, clients=clients, split=split, observers=self.observers)
            finally:
                self.run = RunDirectory.create(path, resume=True)
                self._observe()
            return
        sites = replace(self.sites, on_step=self._report_step)
        app = build_client_app(lambda context: sites.site(int(context.node_config["partition-id"])))
        grid = InProcessGrid(app, clients)
        run_federation(grid, self.config, self.run, expected_clients=clients, split=split)

    def compare_and_sample(self) -> None:
        """Train the baselines that are missing, and let base and federated model answer some prompts."""
        for baseline in missing_baselines(self.sites, self._events()):
            self.run.events.append(run_baseline(self.sites, baseline))
        for sample in generate_samples(self.sites, self._final_adapter()):
            self.run.events.append(sample)

    def _export(self) -> None:
        adapter = self._final_adapter()
        summary = summarise(read_events(self.run.events.path))
        spec = adapter_spec(self.config.model, self.config.peft)
        target = self.run.path / "adapter"
        save_adapter(adapter, spec, self.config.peft, self.config.model.name, target)
        write_model_card(target, summary, self.config)

    def _report(self) -> None:
        write_report(self.run.events.path, self.run.path / "report.html")

    def _final_adapter(self) -> Adapter:
        spec = adapter_spec(self.config.model, self.config.peft)
        return load_checkpoint(self.run, self.config.federation.rounds, spec).adapter

    def _complete_rounds(self) -> int | None:
        """Return the last round that is complete in the log and has a checkpoint; None for no round."""
        before = [event for event in read_events(self.run.events.path) if isinstance(event, RunStarted)]
        if before:
            _require_same_config(before[-1].config, _values(self.config), self.run.path)
        finished = {event.round for event in self._events() if isinstance(event, RoundFinished)}
        return max(finished.intersection(self.run.checkpoints()), default=None)

    def _round_after_which_it_goes_on(self) -> int:
        starts = [event for event in read_events(self.run.events.path) if isinstance(event, RunStarted)]
        return starts[-1].resumed_after or 0

    def _finish(self, status: Literal["completed", "failed", "interrupted"], reason: str | None) -> None:
        """Record the end; the federation's time runs from the start of loading to the last evaluation."""
        mine = [event for event in read_events(self.run.events.path) if event.time >= self.started]
        ends = [event.time for event in mine if isinstance(event, RoundFinished)]
        loaded = [event.time for event in mine if isinstance(event, Sites)]
        self.run.events.append(
            RunFinished(
                status=status,
                reason=reason,
                seconds=max(ends, default=self.started) - self.started,
                load_seconds=max(loaded, default=self.started) - self.started,
                peak_memory_mib=peak_memory_mib(),
            )
        )

    def _events(self) -> list[Event]:
        return effective_events(read_events(self.run.events.path))

    def _observe(self) -> None:
        for observer in self.observers:
            self.run.events.observe(observer)

    def _report_step(self, site: str, round_number: int, step: StepReport) -> None:
        self.run.events.emit(
            StepProgress(
                round=round_number,
                client=site,
                step=step.step,
                steps=step.steps,
                loss=step.loss,
                tokens_per_second=step.tokens_per_second,
            )
        )


def _ending(error: BaseException) -> tuple[Literal["failed", "interrupted"], str]:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "Stopped from the keyboard."
    return "failed", str(error) if isinstance(error, FedtuneError) else f"unexpected {type(error).__name__}"


def _values(config: Config) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config_to_json(config))
    return values


FREE_ON_RESUME = frozenset({"resume", "baselines", "runs_dir"})
"""Keys that may differ when a run goes on: they do not change what its rounds compute."""


def _require_same_config(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    old, new = _flat(before), _flat(now)
    problems = [
        Problem(
            code="FT711",
            what=f"the run was started with {key}={old.get(key)!r}, now it is {new.get(key)!r}",
            where=f"{path}, {key}",
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
