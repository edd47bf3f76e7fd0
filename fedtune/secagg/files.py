"""Rosters and entries as files: read bounded and whole, with problems that name the file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fedtune.errors import FedtuneError, Problem, SecureAggregationError
from fedtune.secagg.entry import Application, parse_application
from fedtune.secagg.fields import MAX_FILE_BYTES
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import Roster, parse_roster

__all__ = ["gathered", "read_application", "read_roster", "refuse_existing"]

_Parsed = TypeVar("_Parsed")


def read_application(path: Path) -> Application:
    """A site's application.

    Raises:
        SecureAggregationError: FT929, with the file's name in each problem.
    """
    return _read(path, parse_application, "FT929")


def read_roster(path: Path) -> Roster:
    """One version of a roster; reading it does not mean that anybody believes it.

    Raises:
        SecureAggregationError: FT918, with the file's name in each problem.
    """
    return _read(path, parse_roster, "FT918")


def refuse_existing(path: Path, what: str) -> None:
    """Stop before something that cannot be made again is written over.

    Raises:
        SecureAggregationError: FT930, there is a file of this name.
    """
    if os.path.lexists(path):
        raise refusal("FT930", f"{what} is not written over a file that is there", where=str(path))


@contextmanager
def gathered(problems: list[Problem]) -> Iterator[None]:
    """Put what a part of the input gets wrong into `problems`, so that other parts are looked at as well."""
    try:
        yield
    except FedtuneError as error:
        problems.extend(error.problems)


def _read(path: Path, parse: Callable[[bytes], _Parsed], code: str) -> _Parsed:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise refusal(code, f"the file cannot be read: {error.strerror}", where=str(path)) from None
    try:
        return parse(text)
    except SecureAggregationError as error:
        named = [dataclasses.replace(item, where=f"{path}, {item.where}") for item in error.problems]
        raise SecureAggregationError(named) from None
