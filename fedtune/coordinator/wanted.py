"""Runs that are to be run to their end: a file each, so that neither a crash nor a reboot forgets one.

``fedtune server run`` writes a run's file, the server reads it, and deletes it when the run has ended by
itself.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.config.schema import Config
from fedtune.config.wire import config_from_json, config_to_json
from fedtune.errors import ConfigError, FedtuneError, Problem, RunError
from fedtune.observability.disk import disk_errors, write_atomic

__all__ = ["PreflightOrder", "WantedRun", "WantedRuns"]

_STOP = ".stop"


@dataclass(frozen=True, kw_only=True)
class PreflightOrder:
    """What a run asks that is a preflight: its own configuration is that of the dry round.

    Attributes:
        config: The configuration that sites are asked about, as a run of it would be submitted.
        to_be_approved: Whether a run of this very name is to come.
        dry_round: Whether a round of one step is tried.
        timeout_seconds: How long to wait for sites' answers.
    """

    config: Config
    to_be_approved: bool
    dry_round: bool
    timeout_seconds: float


@dataclass(frozen=True, kw_only=True)
class WantedRun:
    """A run that is to be run.

    Attributes:
        config: The resolved configuration, without folders of this machine.
        stopped: Whether the operator has asked to stop it.
        preflight: What it asks, if it is a preflight.
    """

    config: Config
    stopped: bool
    preflight: PreflightOrder | None = None

    @property
    def name(self) -> str:
        return self.config.name


class WantedRuns:
    """The folder of these files.

    Args:
        folder: Made at the first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, config: Config, preflight: PreflightOrder | None = None) -> None:
        """Want a run.

        Args:
            config: Of the run.
            preflight: What it asks, if it is a preflight.

        Raises:
            RunError: FT665, another run is wanted; FT705 or FT707, it cannot be written.
        """
        with self._alone():
            wanted = self.all()
            if wanted:
                raise RunError(
                    Problem(
                        code="FT665",
                        what=f"the run {wanted[0].name} has not ended, and a server runs one at a time",
                        where=str(self._folder),
                        fix=f"wait for its end, or `fedtune server stop FOLDER {wanted[0].name}`",
                    )
                )
            with disk_errors(self._folder, kept="nothing was started"):
                self._stop(config.name).unlink(missing_ok=True)
            write_atomic(
                self._path(config.name),
                json.dumps(_record(config, preflight)).encode(),
                kept="nothing was started",
                again="start the run again",
            )

    def ask_to_stop(self, name: str) -> bool:
        """Ask to stop a run; False if it is not wanted."""
        if not self._path(name).exists():
            return False
        write_atomic(self._stop(name), b"", kept="the run goes on", again="stop it again")
        return True

    def drop(self, name: str) -> None:
        """Want a run no more."""
        self._path(name).unlink(missing_ok=True)
        self._stop(name).unlink(missing_ok=True)

    def all(self) -> list[WantedRun]:
        """Return the runs that are wanted, by name.

        Raises:
            RunError: FT666, a file is damaged.
        """
        found, problems = self.scan()
        if problems:
            raise RunError(problems)
        return found

    def scan(self) -> tuple[list[WantedRun], list[Problem]]:
        """Return the runs that are wanted, by name, and an FT666 for each file that is damaged."""
        found: list[WantedRun] = []
        problems: list[Problem] = []
        for path in sorted(self._folder.glob("*.json")):
            try:
                found.append(self._read(path))
            except FileNotFoundError:
                continue
            except RunError as error:
                problems += error.problems
        return found, problems

    def preflight(self, name: str) -> PreflightOrder | None:
        """Return what a run asks, if it is a preflight that is wanted.

        Raises:
            RunError: FT666, its file is damaged.
        """
        try:
            return self._read(self._path(name)).preflight
        except FileNotFoundError:
            return None

    def _read(self, path: Path) -> WantedRun:
        try:
            raw = json.loads(path.read_bytes())
            config, preflight = _own_config(raw, path), _preflight(raw.get("preflight"), path)
        except FileNotFoundError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
            what = error.problems[0].what if isinstance(error, FedtuneError) else "it cannot be read"
            raise RunError(
                Problem(
                    code="FT666",
                    what=f"the record of a run that is to be run is damaged: {what}",
                    where=str(path),
                    fix="delete it and start the run again with resume=true",
                )
            ) from error
        return WantedRun(config=config, stopped=self._stop(config.name).exists(), preflight=preflight)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Let one command at a time look and write: the lock is the kernel's."""
        with disk_errors(self._folder, kept="nothing was started"):
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _path(self, name: str) -> Path:
        return self._folder / f"{os.path.basename(name)}.json"

    def _stop(self, name: str) -> Path:
        return self._folder / f"{os.path.basename(name)}{_STOP}"


def _record(config: Config, preflight: PreflightOrder | None) -> dict[str, Any]:
    record: dict[str, Any] = {"v": 1, "config": json.loads(config_to_json(config))}
    if preflight is not None:
        record["preflight"] = {
            "config": json.loads(config_to_json(preflight.config)),
            "to_be_approved": preflight.to_be_approved,
            "dry_round": preflight.dry_round,
            "timeout_seconds": preflight.timeout_seconds,
        }
    return record


def _own_config(raw: dict[str, Any], path: Path) -> Config:
    config = _config(raw, path)
    if config.name != path.stem:
        raise ValueError(f"it is about {config.name}")
    return config


def _config(raw: dict[str, Any], path: Path) -> Config:
    return config_from_json(json.dumps(raw["config"]), where=str(path))


def _preflight(raw: dict[str, Any] | None, path: Path) -> PreflightOrder | None:
    if raw is None:
        return None
    return PreflightOrder(
        config=_config(raw, path),
        to_be_approved=bool(raw["to_be_approved"]),
        dry_round=bool(raw["dry_round"]),
        timeout_seconds=float(raw["timeout_seconds"]),
    )
