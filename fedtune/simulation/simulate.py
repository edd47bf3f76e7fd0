"""``fedtune simulate``: a whole federation on this machine, from overrides to a report.

data -> sites -> rounds (in this process, or on Ray) -> baselines -> samples -> adapter, card, report
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedtune.aggregation.carrying import side_car_of
from fedtune.config.compose import compose
from fedtune.config.rules import require_simulated
from fedtune.config.schema import Config
from fedtune.errors import ConfigError, Problem
from fedtune.federation.client import build_client_app
from fedtune.federation.control_memory import ControlMemory
from fedtune.federation.kept_training import KeptTraining
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.residual_memory import ResidualMemory
from fedtune.federation.server import run_federation
from fedtune.federation.session import RunSession
from fedtune.observability.events import Event, StepProgress, effective_events, read_events
from fedtune.observability.round_table import round_table
from fedtune.observability.run_directory import RunDirectory, events_path
from fedtune.observability.summary import summarise
from fedtune.simulation.backdoor import measure_backdoor
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
    require_simulated(config)
    config = replace(config, runs_dir=str(Path(config.runs_dir).absolute()))
    if config.backend.name == "ray":
        require_ray()
    sites = load_sites(config)
    _require_named_sites(config, sites)
    path = Path(config.runs_dir) / config.name
    run = RunDirectory.create(path, resume=config.resume)
    session = RunSession(config=config, run=run, started=started, observers=observers)
    simulation = _Simulation(session=session, sites=sites)
    with session:
        simulation.enrol()
        simulation.federate()
        simulation.compare_and_sample()
    for memory in (OptimizerMemory, ResidualMemory, ControlMemory, KeptTraining):
        memory.forget(path / "sites")
    return Run(path=path, config=config)


@dataclass(kw_only=True)
class _Simulation:
    """What a simulation does in its session."""

    session: RunSession
    sites: VirtualSites

    @property
    def _config(self) -> Config:
        return self.session.config

    def enrol(self) -> None:
        """Give coordinator and sites what secure aggregation needs of them."""
        if self._config.secagg.enabled:
            enrol(self.session.run.path, self._config, self.sites.training_examples())

    def federate(self) -> None:
        """Run the rounds that are missing."""
        session, config = self.session, self._config
        if session.is_complete:
            return
        clients, split = len(self.sites), self.sites.split()
        if config.backend.name == "ray":
            path = session.run.path
            session.run.close()  # the server in Flower's process writes it now
            try:
                run_on_ray(config, path, clients=clients, split=split, observers=session.observers)
            finally:
                session.run = RunDirectory.create(path, resume=True)
                session.observe()
            return
        sites = replace(self.sites, on_step=self._report_step)
        app = build_client_app(lambda context: sites.site(int(context.node_config["partition-id"])))
        grid = InProcessGrid(app, clients)
        run_federation(grid, config, session.run, expected_clients=clients, split=split)

    def compare_and_sample(self) -> None:
        """Train the baselines that are missing, and let base and federated model answer some prompts."""
        session = self.session
        for baseline in missing_baselines(self.sites, session.events()):
            session.run.events.append(run_baseline(self.sites, baseline))
        final = session.final()
        for sample in generate_samples(self.sites, final.adapter, side_car_of(final.carried)):
            session.run.events.append(sample)
        if self._config.attack.sites and self._config.attack.kind == "backdoor":
            measured = measure_backdoor(self.sites, final.adapter, side_car_of(final.carried))
            session.run.events.append(measured)

    def _report_step(self, site: str, round_number: int, step: StepReport) -> None:
        self.session.run.events.emit(
            StepProgress(
                round=round_number,
                client=site,
                step=step.step,
                steps=step.steps,
                loss=step.loss,
                tokens_per_second=step.tokens_per_second,
            )
        )


def _require_named_sites(config: Config, sites: VirtualSites) -> None:
    """Refuse names of sites that the split does not have: a slip would be passed over in silence."""
    named = {
        "aggregation.site_ranks": set(config.aggregation.site_ranks),
        "attack.sites": set(config.attack.sites),
        "speed.sites": set(config.speed.sites),
    }
    problems = [
        Problem(
            code="FT105",
            what=f"{key} names {', '.join(sorted(unknown))}, and there is no such site",
            where=key,
            fix=f"name some of {', '.join(sites.partition.names)}",
        )
        for key, names in named.items()
        if (unknown := names - set(sites.partition.names))
    ]
    if problems:
        raise ConfigError(problems)
