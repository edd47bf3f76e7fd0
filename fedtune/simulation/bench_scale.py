"""Measurements of many clients: what a round costs beside training, and what each client more costs.

Runs of 10 to 10,000 virtual clients, at most 100 of them a round, each in a process of its own: real rows, a
real split, real messages, encoding and aggregation, real files; but nobody trains
(`fedtune.simulation.idle`). The adapter is that of SmolLM2-135M with rank 8: 420 tensors of 9.3 MiB
together. The error meter is off, for it keeps every update of a round.

``python -m fedtune.simulation.bench_scale CLIENTS ROUNDS FOLDER`` measures one run and prints it as JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.federation.server import run_federation
from fedtune.federation.session import RunSession
from fedtune.models.adapted import adapter_spec
from fedtune.observability.events import RoundFinished, RoundStarted, Sites, read_events
from fedtune.observability.memory import peak_memory_mib
from fedtune.observability.report_html import write_report
from fedtune.observability.run_directory import RunDirectory
from fedtune.simulation.grid import InProcessGrid
from fedtune.simulation.idle import idle_app
from fedtune.simulation.sites import load_sites

__all__ = ["SIZES", "Scale", "bench_scale", "measure"]

SIZES = (10, 100, 1_000, 10_000)
COHORT = 100
ROUNDS = 7
EVALUATED = 10
_SETTINGS = (
    "data=files",
    "data.held_out_fraction=0",
    "partition=iid",
    "peft.rank=8",
    "training.steps_per_round=1",
    "training.examples_per_step=1",
    "training.keep_optimizer_state=false",
    "aggregation.error_meter=false",
    "evaluation.every_rounds=0",
    "evaluation.generations=0",
    f"evaluation.clients={EVALUATED}",
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One run.

    Attributes:
        clients: Virtual clients.
        adapter_mib: Of the adapter that travels.
        startup_seconds: From the rows on disk to the last client's greeting: reading, splitting, greeting.
        round_seconds: Of each round.
        peak_memory_mib: Of the process.
        log_mib: ``rounds.jsonl`` after the run.
        report_mib: ``report.html``.
        report_seconds: Reading the log and drawing the report from it.
    """

    clients: int
    adapter_mib: float
    startup_seconds: float
    round_seconds: tuple[float, ...]
    peak_memory_mib: float
    log_mib: float
    report_mib: float
    report_seconds: float


def bench_scale(
    *, on_part: Callable[[str], None], sizes: Sequence[int] = SIZES, rounds: int = ROUNDS
) -> dict[str, float | list[float]]:
    """Measure; the keys are an interface.

    Args:
        on_part: Told of what comes next.
        sizes: Numbers of clients, ascending; the plain keys speak of the last one.
        rounds: Of each run.
    """
    runs = []
    for clients in sizes:
        on_part(f"{clients:,} clients, {min(COHORT, clients)} a round")
        runs.append(_in_a_process(clients, rounds))
    few, most = next(run for run in runs if run.clients >= COHORT), runs[-1]
    more = max(1, most.clients - few.clients)
    figures: dict[str, float | list[float]] = {
        "seconds_per_round": statistics.median(most.round_seconds),
        "seconds_per_round_spread": [min(most.round_seconds), max(most.round_seconds)],
        "peak_memory_mib": most.peak_memory_mib,
        f"memory_ratio_{most.clients}_over_{few.clients}": most.peak_memory_mib / few.peak_memory_mib,
        "startup_ms_per_client": 1000 * (most.startup_seconds - few.startup_seconds) / more,
        "log_mib": most.log_mib,
        "report_mib": most.report_mib,
        "report_seconds": most.report_seconds,
        "adapter_mib": most.adapter_mib,
        "rounds": rounds,
    }
    for run in runs:
        figures |= {
            f"seconds_per_round_{run.clients}": statistics.median(run.round_seconds),
            f"startup_seconds_{run.clients}": run.startup_seconds,
            f"peak_memory_mib_{run.clients}": run.peak_memory_mib,
        }
    return figures


def measure(clients: int, rounds: int, folder: Path, overrides: Sequence[str] = ()) -> Scale:
    """Run a federation of clients that do not train, in this process.

    Args:
        clients: How many.
        rounds: How many.
        folder: An empty one.
        overrides: After the bench's own.
    """
    config = _config(clients, rounds, folder, overrides)
    spec = adapter_spec(config.model, config.peft)  # a cost of the model's, whatever the number of clients
    began = time.time()
    sites = load_sites(config)
    run = RunDirectory.create(folder / "runs" / config.name)
    with RunSession(config=config, run=run, started=began):
        grid = InProcessGrid(idle_app(sites, spec), clients)
        run_federation(grid, config, run, expected_clients=clients, split=sites.split())
    peak, events = peak_memory_mib(), read_events(run.events.path)
    drawn = time.perf_counter()
    report = write_report(run.events.path, run.path / "report.html")
    return Scale(
        clients=clients,
        adapter_mib=spec.nbytes() / 2**20,
        startup_seconds=next(event.time for event in events if isinstance(event, Sites)) - began,
        round_seconds=tuple(
            end.time - start.time
            for start, end in zip(
                (event for event in events if isinstance(event, RoundStarted)),
                (event for event in events if isinstance(event, RoundFinished) and event.round > 0),
                strict=True,
            )
        ),
        peak_memory_mib=peak,
        log_mib=run.events.path.stat().st_size / 2**20,
        report_mib=report.stat().st_size / 2**20,
        report_seconds=time.perf_counter() - drawn,
    )


def _config(clients: int, rounds: int, folder: Path, overrides: Sequence[str]) -> Config:
    rows = folder / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"Which number follows {row}?", "response": f"{row + 1}."}) + "\n"
            for row in range(clients)
        ),
        encoding="utf-8",
    )
    chosen = ("name=scale", f"runs_dir={folder / 'runs'}", f"data.files=[{rows}]")
    counted = (
        f"partition.clients={clients}",
        f"federation.clients_per_round={min(COHORT, clients)}",
        f"federation.rounds={rounds}",
    )
    return compose([*_SETTINGS, *chosen, *counted, *overrides])


def _in_a_process(clients: int, rounds: int) -> Scale:
    with tempfile.TemporaryDirectory(prefix="fedtune-bench-") as folder:
        command = [sys.executable, "-m", "fedtune.simulation.bench_scale", str(clients), str(rounds), folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    values = json.loads(done.stdout.splitlines()[-1])
    return Scale(**values | {"round_seconds": tuple(values["round_seconds"])})


if __name__ == "__main__":
    print(json.dumps(asdict(measure(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))))
