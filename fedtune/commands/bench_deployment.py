"""``fedtune bench deployment``: a server and four sites as processes over TLS, with the demo's model.

What a round costs beyond training is Flower's polling, the transport of adapters, and with secure
aggregation its trips. Sites train at the same time on the same cores, so training itself is left out of every
figure.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fedtune.commands.reporting import say
from fedtune.config.compose import compose
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.status import read_status
from fedtune.errors import MachineError, Problem
from fedtune.federation.processes import free_ports
from fedtune.observability.events import effective_events, read_events
from fedtune.observability.round_table import round_table
from fedtune.site.folder import SiteFolder

__all__ = ["bench_deployment"]

SITES: Final = ("north", "east", "south", "west")
ROWS: Final = 24
START_SECONDS: Final = 300.0
ROUNDS_PLAIN, ROUNDS_SECURE = 10, 3
_RUN: Final = (
    "training.steps_per_round=1",
    "training.examples_per_step=2",
    "training.threads=1",
    "data.max_tokens=128",
    "evaluation.every_rounds=0",
    "federation.round_timeout_seconds=600",
)


def bench_deployment() -> dict[str, float | bool | list[float]]:
    """Run ten plain rounds and three secure ones, and read what they took.

    Raises:
        MachineError: FT811, a process of it ended or a run did not complete; the end of its log is shown.
    """
    with _trial() as trial:
        plain = trial.run(
            "plain", ROUNDS_PLAIN, "secagg=off", "federation.metrics=[examples,held_out_loss]", memory=True
        )
        secure = trial.run("secure", ROUNDS_SECURE, "secagg.k_min=3", "seed=1")
        loads = [trial.model_loads(name) for name in SITES]
    growth = [after / before - 1 for before, after in zip(trial.first_mib, trial.last_mib, strict=True)]
    return {
        "round_overhead_seconds": statistics.median(plain),
        "round_overhead_seconds_spread": [min(plain), max(plain)],
        "secure_round_overhead_seconds": statistics.median(secure),
        "secure_round_overhead_seconds_spread": [min(secure), max(secure)],
        "base_model_loads": float(max(loads)),
        "site_memory_mib": statistics.median(trial.last_mib),
        "site_memory_growth": max(growth),
        "start_seconds": trial.start_seconds,
    }


@dataclass(kw_only=True)
class _Trial:
    """A federation in a temporary folder."""

    path: Path
    start_seconds: float = 0.0
    first_mib: list[float] = field(default_factory=list)
    last_mib: list[float] = field(default_factory=list)
    _health: dict[str, int] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def coordinator(self) -> CoordinatorFolder:
        return CoordinatorFolder(self.path / "coordinator")

    def make(self) -> None:
        folder, (port, superlink) = self.coordinator, free_ports(2)
        ports = ("--port", str(port), "--superlink-port", str(superlink))
        made = _fedtune("server", "init", folder.path, "--federation", "bench", "--ip", "127.0.0.1", *ports)
        _edit(folder.settings, f"0.0.0.0:{port}", f"127.0.0.1:{port}")
        requests = [self._make_site(name, made["fingerprints"]["coordinator"]) for name in SITES]
        roster = _fedtune("server", "enrol", folder.path, *requests)["roster"]["fingerprint"]
        for name in SITES:
            bundle = folder.bundles / f"{name}.bundle.json"
            _fedtune("client", "join", self.path / name, bundle, "--roster-fingerprint", roster)

    def _make_site(self, name: str, coordinator: str) -> str:
        rows = self.path / f"{name}.jsonl"
        rows.write_text(
            "".join(
                json.dumps({"instruction": f"Describe finding {n} of {name}.", "output": _sentence(name, n)})
                + "\n"
                for n in range(ROWS)
            ),
            encoding="utf-8",
        )
        model = compose(["name=bench"]).model.name
        made = _fedtune(
            *("client", "init", self.path / name, "--name", name, "--federation", "bench", "--data", rows),
            *("--coordinator", coordinator, "--model", model, "--k-min", "3"),
        )
        site, (self._health[name],) = SiteFolder(self.path / name), free_ports(1)
        _edit(site.settings, "health: 127.0.0.1:9465", f"health: 127.0.0.1:{self._health[name]}")
        for before, after in (
            ("preapproved: []", "preapproved: [any]"),
            ("required: true", "required: false"),
            ("max_clip_bound: 0.1", "max_clip_bound: null"),
            ("metrics: [held_out_loss]", "metrics: [examples, held_out_loss]"),
            ("rounds_per_day: 12", "rounds_per_day: 1000"),
        ):
            _edit(site.policy, before, after)
        return str(made["request"])

    def start(self) -> None:
        began = time.monotonic()
        self._start("server", "server", self.coordinator.path)
        for name in SITES:
            self._start(name, "client", self.path / name)
        while not self._connected():
            self._require_alive()
            if time.monotonic() - began > START_SECONDS:
                raise self._failed(f"not every site was connected within {START_SECONDS:g} s", "server")
            time.sleep(0.5)
        self.start_seconds = time.monotonic() - began

    def stop(self) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def run(self, name: str, rounds: int, *overrides: str, memory: bool = False) -> list[float]:
        """Do a run; returns the seconds of each round in which no site trained."""
        say(f"measuring {rounds} {name} rounds …")
        arguments = [f"name={name}", f"federation.rounds={rounds}", *_RUN, *overrides]
        _fedtune("server", "run", self.coordinator.path, "--detach", *arguments)
        path = self.coordinator.runs / name / "rounds.jsonl"
        while True:
            self._require_alive()
            status = read_status(self.coordinator.status)
            run = None if status is None else status.run
            rows = round_table(effective_events(read_events(path))) if path.exists() else []
            done = sum(row["finished"] and row["round"] > 0 for row in rows)
            if memory and done >= 1 and not self.first_mib:
                self.first_mib = [self._memory_mib(site) for site in SITES]
            if run is not None and run.name == name and run.state in ("completed", "failed", "given_up"):
                break
            time.sleep(0.2)
        if run.state != "completed":
            raise self._failed(f"the {name} run {run.state}: {run.reason}", "server")
        if memory:
            self.last_mib = [self._memory_mib(site) for site in SITES]
        return [row["other_seconds"] for row in rows if row["round"] > 0]

    def model_loads(self, name: str) -> int:
        log = SiteFolder(self.path / name).logs / "client.jsonl"
        return log.read_text(encoding="utf-8").count("the base model is loaded")

    def _memory_mib(self, name: str) -> float:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(f"http://127.0.0.1:{self._health[name]}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.search(r"^fedtune_\w*(?:resident|rss)\w*(?:\{[^}]*\})? ([0-9.e+]+)$", text, re.MULTILINE)
        if found is None:
            raise self._failed("its metrics do not tell its memory", name)
        return float(found.group(1)) / 2**20

    def _connected(self) -> bool:
        status = read_status(self.coordinator.status)
        return (
            status is not None
            and len(status.sites) == len(SITES)
            and all(site.online for site in status.sites)
        )

    def _require_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise self._failed(f"it ended with {process.returncode}", name)

    def _failed(self, what: str, name: str) -> MachineError:
        log = self.path / f"{name}.log"
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return MachineError(
            Problem(
                code="FT811",
                what=f"the measurement of a deployment broke off at {name}: {what}",
                where=last[0][:200] if last else str(log),
                fix="free memory and processors, and run it again",
            )
        )

    def _start(self, name: str, side: str, folder: Path) -> None:
        with (self.path / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "fedtune", side, "start", str(folder)]
            self._processes[name] = subprocess.Popen(  # noqa: S603
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@contextmanager
def _trial() -> Iterator[_Trial]:
    with tempfile.TemporaryDirectory(prefix="fedtune-bench-") as folder:
        trial = _Trial(path=Path(folder))
        say("making a coordinator and four sites …")
        trial.make()
        try:
            say("starting them …")
            trial.start()
            yield trial
        finally:
            trial.stop()


def _fedtune(*arguments: str | Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "fedtune", *map(str, arguments), "--json"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603
    if done.returncode:
        raise MachineError(
            Problem(
                code="FT811",
                what=f"the measurement of a deployment broke off: {done.stderr.strip()[:400]}",
                where=" ".join(map(str, arguments[:2])),
                fix="mend what it says, and run it again",
            )
        )
    value: dict[str, Any] = json.loads(done.stdout)
    return value


def _edit(path: Path, before: str, after: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")


def _sentence(name: str, number: int) -> str:
    grade, side = number % 5 + 1, ("left", "right")[number % 2]
    return f"Finding {number} is seen in the {name} on the {side}, of grade {grade}, without further change."
