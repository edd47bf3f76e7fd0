"""``fedtune simulate -m``: one run for each combination of values, by hydra's own multirun.

hydra's launchers and sweepers plug in as in any hydra application. The runs of a sweep lie in one folder,
``runs_dir/name``, each under its number and the values that tell it from the others; how each job ended is in
``jobs/NUMBER.json`` there, so that it does not matter which process ran it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.config.compose import compose, register_resolvers
from fedtune.config.location import config_dir
from fedtune.config.overrides import check_overrides, expand_sweep, quoted
from fedtune.config.rules import require_simulated
from fedtune.config.schema import Config
from fedtune.config.validate import shown
from fedtune.errors import ConfigError, FedtuneError, Problem, RunError
from fedtune.observability.disk import write_atomic

__all__ = ["run_sweep"]

_OF_ALL_JOBS = ("name", "runs_dir", "resume")
_LONGEST_LABEL = 80


def run_sweep(overrides: Sequence[str], *, as_json: bool) -> int:
    """Run all jobs of a sweep and print how they compare.

    All combinations are checked before the first one starts.

    Args:
        overrides: As for a single run, with several values for some keys: ``seed=0,1``, ``seed=range(0,3)``.
        as_json: Print the table as one JSON object to stdout.

    Returns:
        0 when all jobs completed, else the exit code of the first that did not; 130 after Ctrl-C.

    Raises:
        ConfigError: A combination is wrong; nothing was run.
        RunError: FT701, a single run has the sweep's name.
    """
    accepted, first = _checked(overrides)
    folder = Path(first.runs_dir).absolute() / first.name
    if (folder / "rounds.jsonl").exists():
        raise RunError(
            Problem(
                code="FT701",
                what=f"there is already a run named {first.name!r}, where the sweep's runs would lie",
                where=str(folder),
                fix="give the sweep another name=",
            )
        )
    shutil.rmtree(folder / "jobs", ignore_errors=True)
    try:
        _run_jobs([*accepted, f"name={quoted(first.name)}"], folder)
    except KeyboardInterrupt:
        given = [text for text in overrides if not text.startswith(("name=", "resume="))]
        again = shlex.join(["fedtune", "simulate", "-m", *given, f"name={first.name}", "resume=true"])
        say(f"\nstopped; complete rounds are kept. To go on: {again}")
        return 130
    jobs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "jobs").glob("*.json"))]
    result = {"sweep": str(folder), "jobs": jobs}
    write_atomic(folder / "sweep.json", json.dumps(result, indent=2).encode())
    if as_json:
        print_json(result)
    _print_table(jobs, folder)
    return next((job["exit_code"] for job in jobs if job["exit_code"]), 0)


def run_job(_: Any) -> float:
    """Run one job: what hydra calls, perhaps in another process.

    Returns:
        The held-out loss after the federation, for sweepers that minimise it; NaN when the job failed.
    """
    from hydra.core.hydra_config import HydraConfig  # noqa: PLC0415

    from fedtune.observability.progress import progress  # noqa: PLC0415
    from fedtune.simulation.simulate import simulate  # noqa: PLC0415

    job = HydraConfig.get()
    number, folder = int(job.job.num), Path(job.sweep.dir)
    name = _job_name(number, job.job.override_dirname)
    outcome: dict[str, Any] = {"job": number, "name": name, "values": job.job.override_dirname}
    say(f"job {number}: {job.job.override_dirname}")
    try:
        with progress() as observer:
            run = simulate(
                [*job.overrides.task, f"runs_dir={quoted(str(folder))}", f"name={quoted(name)}"],
                observers=[observer],
            )
        loss = run.summary["held_out_loss"]
        outcome |= {
            "status": "completed",
            "exit_code": 0,
            "held_out_loss": loss,
            "seconds": run.summary["seconds"],
            "run": str(run.path),
        }
        value = float("nan") if loss["federated"] is None else float(loss["federated"])
    except FedtuneError as error:
        say(str(error))
        outcome |= {"status": "failed", "exit_code": error.exit_code, "error": str(error)}
        value = float("nan")
    (folder / "jobs").mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "jobs" / f"{number:04d}.json", json.dumps(outcome).encode())
    return value


def _checked(overrides: Sequence[str]) -> tuple[tuple[str, ...], Config]:
    """The overrides as hydra takes them, and the first job's configuration; every job composes."""
    checked = check_overrides(overrides, directories=(config_dir(),), sweep=True)
    problems = list(checked.problems)
    if problems:
        raise ConfigError(problems)
    ours = [text for text in checked.accepted if not text.lstrip("+~").startswith(("hydra.", "hydra/"))]
    configs: list[Config] = []
    for job in expand_sweep(ours) or [[]]:
        try:
            config = compose(job)
            require_simulated(config)
            configs.append(config)
        except ConfigError as error:
            problems.extend(problem for problem in error.problems if problem not in problems)
    for key in _OF_ALL_JOBS:
        if len({getattr(config, key) for config in configs}) > 1 and checked.sources.get(key):
            problems.append(
                Problem(
                    code="FT106",
                    what=f"{key} has several values, but it is that of the whole sweep",
                    where=checked.sources[key],
                    fix=f"give {key} one value: each job gets a folder of its own inside",
                )
            )
    if problems:
        raise ConfigError(problems)
    return checked.accepted, configs[0]


def _run_jobs(overrides: Sequence[str], folder: Path) -> None:
    from hydra import main  # noqa: PLC0415
    from hydra.errors import HydraException  # noqa: PLC0415

    register_resolvers()
    constant = [text.partition("=")[0].lstrip("+") for text in overrides if not _has_several_values(text)]
    arguments = [
        "fedtune",
        "--multirun",
        *overrides,
        f"hydra.sweep.dir={quoted(str(folder))}",
        "hydra.job.config.override_dirname.exclude_keys=[" + ",".join(map(quoted, constant)) + "]",
    ]
    try:
        with _as_program(arguments):
            main(config_path=str(config_dir()), config_name="config", version_base="1.3")(run_job)()
    except HydraException as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(
            Problem(
                code="FT108",
                what=f"hydra cannot start the sweep: {shown(reason, quoted=False)}",
                where=" ".join(text for text in overrides if text.lstrip("+~").startswith("hydra"))
                or "hydra",
                fix="correct the override, or install the plugin that it names",
            )
        ) from error


@contextmanager
def _as_program(arguments: list[str]) -> Iterator[None]:
    """Let hydra find its arguments where it looks for them, and raise its errors instead of printing them."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = arguments, "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full


def _has_several_values(override: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: PLC0415

    return bool(OverridesParser.create().parse_override(override).is_sweep_override())


def _job_name(number: int, values: str) -> str:
    """A folder name: the job's number, so that no two are alike, and its values, for people."""
    short = ",".join(_last_parts(values)) if values else ""
    label = re.sub(r"[^A-Za-z0-9.=+-]+", "_", short)[:_LONGEST_LABEL].rstrip("_.")
    return f"{number:02d}_{label}" if label else f"{number:02d}"


def _last_parts(values: str) -> Iterator[str]:
    for item in values.split(","):
        key, _, value = item.partition("=")
        yield f"{key.rpartition('.')[2]}={value}"


def _print_table(jobs: Sequence[dict[str, Any]], folder: Path) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table("job", "values", "status", "loss before", "loss after", "seconds")
    for job in jobs:
        loss = job.get("held_out_loss") or {}
        numbers = (loss.get("base"), loss.get("federated"))
        cells = ["" if number is None else f"{number:.4f}" for number in numbers]
        seconds = "" if job.get("seconds") is None else f"{job['seconds']:.0f}"
        # As Text: values in brackets are no markup.
        table.add_row(str(job["job"]), Text(job["values"]), job["status"], *cells, seconds)
    Console(stderr=True).print(table)
    say(f"runs: {folder}")
