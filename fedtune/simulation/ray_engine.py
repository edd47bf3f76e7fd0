"""The same two apps on Flower's Ray engine, as ``flwr run`` starts it.

On a Ray cluster (``backend.address``) the actors of all its machines take part; they need the same fedtune,
and the run directory, the data and the model under the same paths, as on a shared file system.

A SuperLink in simulation mode is started on loopback, on ports of its own and with a Flower home of its own
inside the run directory, the bundle is submitted, and both are gone when the run is over. The ServerApp runs
in Flower's simulation process and writes the run directory; this process follows its event log.

What is Flower's and could move with its version is here and nowhere else.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter

from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json
from fedtune.errors import FederationError, MachineError, Problem
from fedtune.federation.bundle import write_bundle
from fedtune.federation.processes import environment, free_ports, listens, script, spawn, stopped_at_the_end
from fedtune.federation.run_config import CLIENTS_KEY, CONFIG_KEY, SPLIT_KEY
from fedtune.models.hardware import physical_cores
from fedtune.observability.event_tail import EventTail
from fedtune.observability.events import Event, RunFinished, Split
from fedtune.observability.run_directory import events_path

__all__ = ["require_ray", "run_on_ray"]

START_SECONDS = 60.0
QUIET_RAY = {
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def require_ray() -> None:
    """Refuse to begin where Ray is missing.

    Raises:
        MachineError: FT810.
    """
    if importlib.util.find_spec("ray") is None:
        raise MachineError(
            Problem(
                code="FT810",
                what="backend=ray needs Ray, which is not installed",
                where="backend.name",
                fix='run: pip install "flwr[simulation]", or use backend=inprocess.',
            )
        )


def run_on_ray(
    config: Config,
    folder: Path,
    *,
    clients: int,
    split: Split | None,
    observers: Sequence[Callable[[Event], None]],
) -> None:
    """Run the federation's rounds on Flower's simulation engine and wait for the end.

    Args:
        config: The whole configuration.
        folder: The run directory; this process must not hold it open.
        clients: How many virtual clients there are.
        split: What is known of the labels at each site.
        observers: Called with each event that the run writes.

    Raises:
        FederationError: FT608, the engine ended without finishing the rounds; its log is named.
    """
    home = folder / "flower"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    bundle = write_bundle(home / "bundle")
    (home / "run.toml").write_text(
        f"{CONFIG_KEY} = {json.dumps(config_to_json(config))}\n"
        f"{CLIENTS_KEY} = {clients}\n"
        f"{SPLIT_KEY} = {json.dumps(_split_json(split))}\n",
        encoding="utf-8",
    )
    env = environment(home) | QUIET_RAY
    env.pop("RAY_ADDRESS", None)
    cluster = config.backend.address
    if cluster is not None:
        env["RAY_ADDRESS"] = cluster  # where Ray looks that is started without an address
    log, events = home / "flower.log", EventTail.at_end(events_path(folder), observers)
    with log.open("wb") as output, _superlink(home, env, output) as connection:
        cores = physical_cores()
        engine = (
            f"num-supernodes={clients} client-resources-num-cpus={max(1, cores // config.backend.actors)}"
        )
        if cluster is None:  # a cluster that is there has its own number
            engine += f" init-args-num-cpus={max(cores, config.backend.actors)}"
        options = ["--run-config", str(home / "run.toml"), "--federation-config", engine]
        submitted = spawn(
            [script("flwr"), "run", str(bundle), connection, "--stream", *options],
            env,
            output,
        )
        with stopped_at_the_end(submitted):
            while submitted.poll() is None:
                events.read()
                time.sleep(0.2)
    events.read()
    rounds = config.federation.rounds
    if isinstance(events.last, RunFinished) or events.finished_rounds < rounds:
        reason = events.last.reason if isinstance(events.last, RunFinished) else "the engine ended early"
        raise FederationError(
            Problem(
                code="FT608",
                what=f"Flower's simulation engine did not finish the {rounds} rounds: {reason}",
                where=str(log),
                fix="read the end of that log, then run again with resume=true",
            )
        )
    shutil.rmtree(home, ignore_errors=True)


def _split_json(split: Split | None) -> str:
    if split is None:
        return ""
    return TypeAdapter(Split).dump_json(split).decode()


@contextmanager
def _superlink(home: Path, env: dict[str, str], output: IO[bytes]) -> Iterator[str]:
    """Start a SuperLink for simulations on free loopback ports; yields the name of the connection."""
    port, control = free_ports(2)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "run"\n\n[superlink.run]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    command = [script("flower-superlink"), "--insecure", "--simulation", "--isolation", "subprocess"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--control-api-address", f"127.0.0.1:{control}"]
    process = spawn(command, env, output)
    with stopped_at_the_end(process):
        deadline = time.monotonic() + START_SECONDS
        while not listens(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise FederationError(
                    Problem(
                        code="FT608",
                        what="Flower's SuperLink did not start",
                        where=str(home / "flower.log"),
                        fix="read the end of that log",
                    )
                )
            time.sleep(0.1)
        yield "run"
