"""The ServerApp of a deployment: a whole run, from wherever it was to its adapter and its report.

Flower's SuperLink starts it in a process of its own, which inherits where the coordinator's folder is. In a
process that was started for no coordinator, it is the ServerApp of Flower's simulation engine.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json
from fedtune.coordinator.folder import INSECURE_VARIABLE, CoordinatorFolder
from fedtune.coordinator.nodes import enrolled_keys, read_names
from fedtune.coordinator.preflight import run_preflight
from fedtune.coordinator.settings import load_settings
from fedtune.coordinator.wanted import WantedRuns
from fedtune.errors import Problem, RunError
from fedtune.federation import server
from fedtune.federation.parcels import ParcelGrid
from fedtune.federation.run_config import CONFIG_KEY
from fedtune.federation.secure_round import SecureCoordinator
from fedtune.federation.session import RunSession
from fedtune.observability.run_directory import RunDirectory

__all__ = ["build_server_app"]

TAKEOVER_SECONDS = 90.0
"""How long to wait for a process of this run that was killed, until Flower has ended it."""


def build_server_app() -> ServerApp:
    """Make the ServerApp that a bundle of this installation names."""
    folder = CoordinatorFolder.of_process()
    if folder is None:
        return server.build_server_app()
    app = ServerApp()

    @app.main()
    def main(flower: Grid, context: Context) -> None:
        grid = ParcelGrid(flower)
        config = config_from_json(str(context.run_config[CONFIG_KEY]))
        models = load_settings(folder.settings).models
        model = replace(config.model, name=models.get(config.model.name, config.model.name))
        here = replace(config, model=model, runs_dir=str(folder.runs))
        order = WantedRuns(folder.wanted).preflight(config.name)
        if order is None:
            _run(grid, here, folder)
            return
        if _is_insecure():
            raise RunError(
                Problem(
                    code="FT614",
                    what="a server without TLS knows no node's name, and cannot ask each site",
                    where="fedtune server start --insecure",
                    fix="start the server without --insecure, or start the run without a preflight",
                )
            )
        run_preflight(
            grid,
            here,
            _taken_over(folder.runs / config.name),
            order,
            registered=partial(read_names, folder.names),
            secure=partial(_secure, here, folder),
        )

    return app


def _run(grid: Grid, config: Config, folder: CoordinatorFolder) -> None:
    started = time.time()
    run = _taken_over(folder.runs / config.name)
    session = RunSession(config=config, run=run, started=started, passing=(httpx.HTTPError,))
    enrolled = len(enrolled_keys(folder.nodes).by_site)
    registered = None if _is_insecure() else partial(read_names, folder.names)
    with session:
        if session.is_complete:
            return
        server.run_federation(
            grid,
            config,
            run,
            expected_clients=enrolled,
            split=None,
            secure=_secure(config, folder, run),
            registered=registered,
        )


def _is_insecure() -> bool:
    return os.environ.get(INSECURE_VARIABLE) == "1"


def _secure(config: Config, folder: CoordinatorFolder, run: RunDirectory) -> SecureCoordinator | None:
    if not config.secagg.enabled:
        return None
    return server.secure_coordinator(config, run, roster=folder.roster, identity=folder.identity)


def _taken_over(path: Path) -> RunDirectory:
    """Open a run directory that a process which is about to end may still hold."""
    deadline = time.monotonic() + TAKEOVER_SECONDS
    while True:
        try:
            return RunDirectory.create(path, resume=True)
        except RunError as error:
            if error.problems[0].code != "FT702" or time.monotonic() > deadline:
                raise
        time.sleep(0.5)
