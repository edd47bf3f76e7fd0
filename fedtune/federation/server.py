"""The Flower ServerApp: a run's configuration arrives as one JSON string, and rounds go to a run directory.

The process that starts a run (``fedtune simulate``) opens its folder, writes the configuration and the
``run_started`` event, and decides from which round to go on; the app, in the same process or in Flower's,
does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import TypeAdapter

from fedtune.aggregation.registry import aggregator
from fedtune.aggregation.steered import configured_aggregator
from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json
from fedtune.errors import FedtuneError
from fedtune.federation.actors import dead_actors_replaced
from fedtune.federation.asynchronous import AsynchronousFederation
from fedtune.federation.checkpoint import Checkpoint, load_checkpoint
from fedtune.federation.rounds import Federation
from fedtune.federation.run_config import CLIENTS_KEY, CONFIG_KEY, SPLIT_KEY
from fedtune.federation.secure_round import SecureCoordinator
from fedtune.keys.authority import COORDINATOR_KEY
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import Adapter, AdapterSpec, initial_adapter
from fedtune.models.hardware import reuse_freed_memory
from fedtune.observability.events import RunFinished, RunStarted, Split, read_events
from fedtune.observability.memory import peak_memory_mib
from fedtune.observability.run_directory import RunDirectory
from fedtune.secagg.files import read_roster
from fedtune.secagg.identity import Identity

__all__ = [
    "ROSTER_FILE",
    "build_server_app",
    "run_federation",
    "secure_coordinator",
    "secure_folder",
]

ROSTER_FILE = "roster.json"
"""The roster in a simulated run's folder of secure aggregation; the coordinator's key lies beside it."""


def secure_folder(run: Path) -> Path:
    """Return a run's folder of secure aggregation: journals and transcripts, and a simulation's keys."""
    return run / "secagg"


def build_server_app() -> ServerApp:
    """Make the ServerApp that runs the federation which its run config describes."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        config = config_from_json(str(context.run_config[CONFIG_KEY]))
        split_json = str(context.run_config[SPLIT_KEY])
        split = TypeAdapter(Split).validate_json(split_json) if split_json else None
        with RunDirectory.create(Path(config.runs_dir) / config.name, resume=True) as run:
            on_ray = config.backend.name == "ray"
            try:
                with dead_actors_replaced() if on_ray else nullcontext():
                    run_federation(
                        grid,
                        config,
                        run,
                        expected_clients=int(context.run_config[CLIENTS_KEY]),
                        split=split,
                    )
            except FedtuneError as error:
                run.events.append(
                    RunFinished(
                        status="failed",
                        reason=str(error),
                        seconds=0.0,
                        load_seconds=0.0,
                        peak_memory_mib=peak_memory_mib(),
                    )
                )
                raise

    return app


def run_federation(
    grid: Grid,
    config: Config,
    run: RunDirectory,
    *,
    expected_clients: int,
    split: Split | None,
    secure: SecureCoordinator | None = None,
    registered: Callable[[], Mapping[int, str]] | None = None,
) -> Adapter:
    """Run the rounds that the run directory still lacks and return the final global adapter.

    The last ``run_started`` event says after which round to go on; its checkpoint gives the adapter.

    Args:
        grid: Flower's way to the clients.
        config: The whole configuration.
        run: The run directory, open for writing.
        expected_clients: How many clients the run is made for.
        split: What a simulation knows of the labels at each site.
        secure: For secure aggregation; None takes what a simulation has put into the run directory.
        registered: As `Federation`.

    Raises:
        FedtuneError: As `Federation.run_rounds`, `AsynchronousFederation.run_steps` and `load_checkpoint`.
    """
    reuse_freed_memory()
    spec = adapter_spec(config.model, config.peft)
    if secure is None and config.secagg.enabled:
        folder = secure_folder(run.path)
        secure = secure_coordinator(
            config, run, roster=folder / ROSTER_FILE, identity=folder / COORDINATOR_KEY
        )
    if config.asynchronous.name != "none":
        return AsynchronousFederation(
            grid=grid,
            config=config,
            run=run,
            spec=spec,
            aggregator=aggregator(config.aggregation),
            expected_clients=expected_clients,
            split=split,
            registered=registered,
        ).run_steps(_start(config, run, spec))
    return Federation(
        grid=grid,
        config=config,
        run=run,
        spec=spec,
        aggregator=configured_aggregator(config, sites=expected_clients),
        expected_clients=expected_clients,
        split=split,
        secure=secure,
        registered=registered,
    ).run_rounds(_start(config, run, spec))


def secure_coordinator(
    config: Config, run: RunDirectory, *, roster: Path, identity: Path
) -> SecureCoordinator:
    """Return the coordinator's part in secure aggregation.

    Args:
        config: The whole configuration.
        run: The run directory, which keeps journals and transcripts.
        roster: File of the version in force; it is read before every round.
        identity: File of the coordinator's identity.

    Raises:
        SecureAggregationError: FT918 or FT928, a file cannot be used.
    """
    return SecureCoordinator(
        folder=secure_folder(run.path),
        latest=partial(read_roster, roster),
        identity=Identity.load(identity),
        config=config,
        spec=adapter_spec(config.model, config.peft),
    )


def _start(config: Config, run: RunDirectory, spec: AdapterSpec) -> Checkpoint:
    sessions = [event for event in read_events(run.events.path) if isinstance(event, RunStarted)]
    done = sessions[-1].resumed_after if sessions else None
    if done:
        return load_checkpoint(run, done, spec)
    return Checkpoint(round=0, adapter=initial_adapter(spec, config.seed))
