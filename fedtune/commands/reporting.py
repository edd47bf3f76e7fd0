"""How a command says what went wrong, and prints what it found."""

from __future__ import annotations

import dataclasses
import json
import logging
import sys
import tempfile
import traceback
from typing import Any

from fedtune.errors import FedtuneError
from fedtune.observability.log_lines import SafeFormatter

__all__ = ["print_json", "report_crash", "report_problems", "say", "show_log"]


class _ToPerson(logging.Handler):
    """Writes to what sys.stderr is at that moment: a live display puts itself in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        say(self.format(record))


def show_log() -> None:
    """Let a person see what fedtune's modules log, such as that a model is being converted.

    A screen shows no word that a log may not hold: an exception's text may quote a row.
    """
    logger = logging.getLogger("fedtune")
    if not logger.handlers:
        handler = _ToPerson()
        handler.setFormatter(SafeFormatter())
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def say(text: str = "") -> None:
    """Print a line for a person: to stderr, so that stdout holds nothing but what was asked for."""
    sys.stderr.write(f"{text}\n")


def print_json(value: Any) -> None:
    """Print one JSON object for a program, to stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def report_problems(error: FedtuneError, *, as_json: bool) -> None:
    """Print every problem: three lines each on stderr, and one JSON object on stdout when asked for."""
    if as_json:
        print_json({"error": _described(error)})
    say(str(error))


def report_crash(error: Exception, *, as_json: bool) -> None:
    """Print that fedtune itself failed, and where its traceback was written."""
    what = " ".join(f"{type(error).__name__}: {error}".split())
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="fedtune-crash-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            traceback.print_exception(error, file=file)
        place = file.name
    except OSError:
        place = "nowhere: no temporary file could be written"
    if as_json:
        print_json(
            {"error": {"type": type(error).__name__, "problems": [], "message": what, "traceback": place}}
        )
    say(f"fedtune failed unexpectedly: {what}")
    say(f"  where: the traceback is in {place}")
    say("  do:    run it again with FEDTUNE_DEBUG=1 to see it here; please report it")


def _described(error: FedtuneError) -> dict[str, Any]:
    return {
        "type": type(error).__name__,
        "exit_code": error.exit_code,
        "problems": [dataclasses.asdict(problem) for problem in error.problems],
    }
