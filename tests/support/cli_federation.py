"""A federation made and run by fedtune's own commands: one server and some sites, as processes, with TLS.

What systemd would do is done here: a process that was killed is started again.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from support.link import Link
from support.tiny_federation import write_rows

from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.status import ServerStatus, read_status
from fedtune.errors import RunError
from fedtune.federation.processes import free_ports
from fedtune.observability.events import Event, read_events
from fedtune.site.folder import SiteFolder

__all__ = ["CANARY", "SITES", "CliFederation", "cli_federation", "fedtune", "tiny_run"]

SITES = {"ear": 12, "eye": 20, "heart": 28, "skin": 24}
MODEL = "tiny"
CANARY = "Quintessa Marrowbone-Vex"
"""A patient's name that stands in a row of every site."""

START_SECONDS, STOP_SECONDS = 180.0, 60.0


def fedtune(*arguments: str | Path) -> dict[str, Any]:
    """Run a command with ``--json`` and return what it prints; fail with its words if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "fedtune", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def tiny_run(**changed: object) -> list[str]:
    """Give overrides of a tiny run; keywords as `support.tiny_federation.tiny_overrides` takes them."""
    settings: dict[str, object] = {
        "model.name": MODEL,
        "model.quantization": "none",
        "model.compute_dtype": "float32",
        "data.max_tokens": 96,
        "data.held_out_fraction": 0.2,
        "peft.rank": 4,
        "training.steps_per_round": 3,
        "training.examples_per_step": 4,
        "training.microbatch_tokens": 256,
        "training.learning_rate": 0.01,
        "training.threads": 1,
        "federation.rounds": 2,
        "federation.round_timeout_seconds": 60,
        "federation.join_timeout_seconds": 120,
        "federation.round_attempts": 5,
        "evaluation.every_rounds": 0,
        "secagg.k_min": 3,
        "secagg.trip_timeout_seconds": 30,
    }
    settings |= {key.replace("__", "."): value for key, value in changed.items()}
    return [f"{key}={value}" for key, value in settings.items()]


@dataclass(kw_only=True)
class CliFederation:
    """A running federation.

    Attributes:
        path: The folder of everything.
        sites: Folder of each site, by name.
        port: Where the gate listens on 127.0.0.1.
        links: Each site's line to the gate.
        insecure: Start everything with ``--insecure``.
    """

    path: Path
    insecure: bool = False
    sites: dict[str, SiteFolder] = field(default_factory=dict)
    port: int = 0
    links: dict[str, Link] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def rows(self) -> Path:
        """Folder of the sites' rows, apart from everything that fedtune writes."""
        return self.path.with_name(f"{self.path.name}-rows")

    @property
    def coordinator(self) -> CoordinatorFolder:
        return CoordinatorFolder(self.path / "coordinator")

    def make(self, model: Path, sizes: dict[str, int] = SITES, groups: dict[str, str] | None = None) -> None:
        """Make and enrol everything; nothing is started."""
        self.rows.mkdir()
        port, superlink = free_ports(2)
        self.port = port
        folder = self.coordinator
        made = fedtune(
            *("server", "init", folder.path, "--federation", "lungs", "--ip", "127.0.0.1"),
            *("--port", str(port), "--superlink-port", str(superlink)),
        )
        edit(folder.settings, "models: {}", f"models: {{{MODEL}: {model}}}")
        edit(folder.settings, f"0.0.0.0:{port}", f"127.0.0.1:{port}")
        requests = []
        for name, size in sizes.items():
            data = write_rows(self.rows / f"{name}.jsonl", {name: size})
            plant(data, name)
            answer = fedtune(
                *("client", "init", self.path / name, "--name", name, "--federation", "lungs"),
                *("--coordinator", made["fingerprints"]["coordinator"], "--data", data),
                *("--model", MODEL, "--model-place", model, "--k-min", "3"),
                *(("--group", groups[name]) if groups else ()),
            )
            requests.append(answer["request"])
            self.sites[name] = SiteFolder(self.path / name)
        enrolled = fedtune("server", "enrol", folder.path, *requests)
        for name, health in zip(sizes, free_ports(len(sizes)), strict=True):
            bundle = folder.bundles / f"{name}.bundle.json"
            fingerprint = enrolled["roster"]["fingerprint"]
            fedtune("client", "join", self.path / name, bundle, "--roster-fingerprint", fingerprint)
            site, self.links[name] = self.sites[name], Link(port)
            edit(site.connection, f"127.0.0.1:{port}", f"127.0.0.1:{self.links[name].port}")
            edit(site.settings, "health: 127.0.0.1:9465", f"health: 127.0.0.1:{health}")
            edit(site.policy, "preapproved: []", "preapproved: [any]")
            edit(site.policy, "required: true", "required: false")
            edit(site.policy, "max_clip_bound: 0.1", "max_clip_bound: null")
            edit(site.policy, "metrics: [held_out_loss]", "metrics: [examples, held_out_loss, personal_loss]")
            edit(site.policy, "rounds_per_day: 12", "rounds_per_day: 1000")
            edit(site.policy, "evaluations_per_day: 14", "evaluations_per_day: 1000")

    def start(self) -> None:
        """Start the server and every site, and wait until all are connected."""
        self.start_server()
        for name in self.sites:
            self.start_site(name)
        self.wait("the start", self.all_connected, seconds=START_SECONDS)

    def start_server(self) -> None:
        self._start("server", ["server", "start", str(self.coordinator.path), *self._insecure])

    def start_site(self, name: str) -> None:
        self._start(name, ["client", "start", str(self.sites[name].path), *self._insecure])

    @property
    def _insecure(self) -> list[str]:
        return ["--insecure"] if self.insecure else []

    def process(self, name: str) -> psutil.Process:
        """Return a site's client, or the server."""
        return psutil.Process(self._processes[name].pid)

    def kill(self, name: str) -> None:
        """SIGKILL a site's client, or the server; what belongs to it dies with it."""
        self._processes[name].send_signal(signal.SIGKILL)
        self._processes[name].wait(timeout=STOP_SECONDS)

    def kill_below_server(self, program: str) -> bool:
        """SIGKILL a process that the server has started, by a part of its command line."""
        for child in self.process("server").children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if any(program in Path(part).name for part in child.cmdline()[:3]):
                    child.kill()
                    return True
        return False

    def restart_the_dead(self) -> None:
        """Start again what has ended."""
        for name, process in list(self._processes.items()):
            if process.poll() is not None:
                (self.start_server() if name == "server" else self.start_site(name))

    def stop(self) -> None:
        """End every process, kindly first, and see that nothing of it is left."""
        family = [psutil.Process(each.pid) for each in self._processes.values() if each.poll() is None]
        family += [child for parent in family for child in parent.children(recursive=True)]
        for process in self._processes.values():
            if process.poll() is None:
                process.terminate()
        _, left = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for each in left:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        for process in self._processes.values():
            process.wait(timeout=STOP_SECONDS)
        for link in self.links.values():
            link.close()
        assert not left, f"still there after SIGTERM: {left}\n{self.logs()}"

    def want(self, *overrides: str) -> None:
        """Ask for a run and come back at once."""
        fedtune("server", "run", self.coordinator.path, "--detach", *overrides)

    def run(self, *overrides: str, seconds: float = 240.0) -> dict[str, Any]:
        """Do a whole run and return its summary."""
        done = subprocess.run(
            [*_command(), "server", "run", str(self.coordinator.path), *overrides, "--json"],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert done.returncode == 0, f"{done.stderr}\n{self.logs()}"
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary

    def status(self) -> ServerStatus:
        status = read_status(self.coordinator.status)
        assert status is not None
        return status

    def state_of(self, run: str) -> str:
        """Return where a run is, as the server says; empty while it says nothing of it."""
        status = read_status(self.coordinator.status)
        return status.run.state if status and status.run and status.run.name == run else ""

    def events(self, run: str) -> list[Event]:
        try:
            return read_events(self.coordinator.runs / run / "rounds.jsonl")
        except RunError:
            return []

    def all_connected(self) -> bool:
        self.require_alive()
        status = read_status(self.coordinator.status)
        return (
            status is not None
            and status.pid == self._processes["server"].pid
            and len(status.sites) == len(self.sites)
            and all(site.online for site in status.sites)
        )

    def require_alive(self) -> None:
        dead = [name for name, process in self._processes.items() if process.poll() is not None]
        assert not dead, f"{dead} ended\n{self.logs()}"

    def wait(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        """Wait until something is so; if it takes too long, fail with the end of every log."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} took longer than {seconds:g} s\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        """Return the end of each process's log."""
        paths = [
            *self.path.glob("*.log"),
            *self.path.glob("*/state/logs/*"),
            *self.path.glob("*/state/*.log"),
        ]
        return "\n".join(
            f"--- {path.relative_to(self.path)}\n"
            + "\n".join(path.read_text(errors="replace").splitlines()[-12:])
            for path in sorted(paths)
        )

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        with (self.path / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [*_command(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {"FEDTUNE_DEBUG": "1"},
                start_new_session=True,
            )


def plant(data: Path, site: str) -> None:
    """Add a row with a canary that is to be found nowhere else."""
    row = {"instruction": f"Who is {CANARY}?", "output": f"{CANARY} of ward 7.", "site": site}
    with data.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def edit(path: Path, before: str, after: str) -> None:
    """Replace a piece of text that stands in a file once."""
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{before!r} stands {text.count(before)} times in {path}"
    path.write_text(text.replace(before, after), encoding="utf-8")


@contextmanager
def cli_federation(
    path: Path, model: Path, sizes: dict[str, int] = SITES, groups: dict[str, str] | None = None
) -> Iterator[CliFederation]:
    """Make a federation, run it, and end it.

    Args:
        path: Where everything is written; must not exist.
        model: Folder of the base model.
        sizes: Rows of each site, by name.
        groups: Group of each site, by name; None for no groups.
    """
    path.mkdir(parents=True)
    federation = CliFederation(path=path)
    federation.make(model, sizes, groups)
    try:
        federation.start()
        yield federation
    finally:
        federation.stop()


def _command() -> list[str]:
    return [sys.executable, "-m", "fedtune"]
