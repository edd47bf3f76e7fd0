"""Errors a person can act on.

Every error that fedtune raises on purpose is one of these, and each holds one or more *problems*: what
happened, where, and what to do. All problems of one input are reported together.

    FedtuneError                 exit code 1
    ├── ConfigError    FT1xx     exit code 2   a key, a value, a combination
    ├── DataError      FT2xx     exit code 3   a file, a row, a field, a split
    ├── ModelError     FT3xx     exit code 4   a base model, an adapter, a target list
    ├── TrainingError  FT4xx     exit code 5   a loss that is not a number, a client with nothing to train on
    ├── UpdateError    FT5xx     exit code 6   a delta that may not count
    ├── FederationError FT6xx    exit code 7   a quorum that was missed, another version, a deployment's keys
    ├── RunError       FT7xx     exit code 8   a run directory: taken, damaged, out of space
    ├── MachineError   FT8xx     exit code 9   something this machine lacks, a file of its own that is bad
    └── SecureAggregationError FT9xx  exit code 10  a check of the secure sum that failed

Each code has a page under docs/reference/errors/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "ConfigError",
    "DataError",
    "FederationError",
    "FedtuneError",
    "MachineError",
    "ModelError",
    "Problem",
    "RunError",
    "SecureAggregationError",
    "TrainingError",
    "UpdateError",
]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One thing that is wrong, in three lines.

    Attributes:
        code: Stable code such as ``FT101``, the name of a page under docs/reference/errors/.
        what: What happened, in one sentence, with the offending value.
        where: File, row, field or config key.
        fix: What the reader can do about it.
    """

    code: str
    what: str
    where: str
    fix: str

    def __str__(self) -> str:
        return f"{self.code}: {self.what}\n  where: {self.where}\n  do:    {self.fix}"


class FedtuneError(Exception):
    """Base of all errors raised on purpose; holds every problem found, never an empty list."""

    exit_code = 1

    def __init__(self, problems: Problem | Sequence[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        if not self.problems:
            raise ValueError("an error needs at least one problem, got none")
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[type[FedtuneError], tuple[tuple[Problem, ...]]]:
        return (type(self), (self.problems,))


class ConfigError(FedtuneError):
    """A configuration that cannot be run: a key, a value or a combination."""

    exit_code = 2


class DataError(FedtuneError):
    """A dataset or a split that cannot be used as it is."""

    exit_code = 3


class ModelError(FedtuneError):
    """A base model or adapter that is missing, damaged or does not fit."""

    exit_code = 4


class TrainingError(FedtuneError):
    """Local training that could not give a usable result."""

    exit_code = 5


class UpdateError(FedtuneError):
    """A delta that may not count: wrong names, shapes, dtype, or values that are not finite."""

    exit_code = 6


class FederationError(FedtuneError):
    """A round that could not be completed by its contract, or key material that a federation cannot use."""

    exit_code = 7


class RunError(FedtuneError):
    """A run directory that is taken, damaged, or out of space."""

    exit_code = 8


class MachineError(FedtuneError):
    """Something that this machine lacks, or a file of its own that cannot be used."""

    exit_code = 9


class SecureAggregationError(FedtuneError):
    """A check of secure aggregation that failed; nothing was released."""

    exit_code = 10
