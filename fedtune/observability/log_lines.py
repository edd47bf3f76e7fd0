"""What a line of a structured log says, and what it never says: a word of a row.

An exception's text may quote the row that caused it, and so may a text that a library puts together. So a
line tells

* of an exception its type and the places in fedtune through which it came; its text only where it is a
  `FedtuneError` that speaks of no row;
* of a message of fedtune the literal text that stands in the code, with its arguments: numbers, paths and
  texts, and of anything else its type. The parts that hold rows (`fedtune.data`, `fedtune.training`,
  `fedtune.evaluation`) have texts among their arguments left out;
* of a message of a library that carries bytes between machines (flwr, httpx, uvicorn) its text;
* of a message of any other library the place in the code that wrote it.

A test holds that each message in fedtune is a literal, so that nothing is put together before it comes here.
"""

from __future__ import annotations

import errno
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from numbers import Number
from pathlib import Path, PurePath
from typing import Any, Final

from fedtune.errors import DataError, FedtuneError, Problem

__all__ = ["CARRIERS", "LineFormatter", "SafeFormatter", "log_context", "words_of"]

CARRIERS: Final = ("flwr", "httpcore", "httpx", "uvicorn")
"""Libraries that carry messages and see no row."""

_LONGEST_MESSAGE: Final = 4_000
_LONGEST_CAUSE: Final = 1_000
_LONGEST_TEXT: Final = 500
_MOST_CAUSES, _MOST_FRAMES = 5, 20
_HOLD_ROWS: Final = ("fedtune.data", "fedtune.training", "fedtune.evaluation")
_PACKAGE: Final = Path(__file__).parents[1]

_run: ContextVar[str | None] = ContextVar("fedtune_log_run", default=None)
_round: ContextVar[int | None] = ContextVar("fedtune_log_round", default=None)


@contextmanager
def log_context(*, run: str | None = None, round: int | None = None) -> Iterator[None]:
    """Let every line that this thread logs inside name a run and a round.

    A thread that is started inside begins without them, unless it runs in ``contextvars.copy_context()``.

    Args:
        run: The run's name; None keeps the one around it.
        round: From 0; None keeps the one around it.
    """
    runs = _run.set(_run.get() if run is None else run)
    rounds = _round.set(_round.get() if round is None else round)
    try:
        yield
    finally:
        _round.reset(rounds)
        _run.reset(runs)


def words_of(error: BaseException | Problem) -> str:
    """What may be told of an exception or a problem to a log: all of it, or no more than its kind.

    Guarantee: what it gives of a `DataError`, of a problem with a code FT2xx or of an exception that is not
    fedtune's own holds no word of the exception's text.
    """
    if isinstance(error, Problem):
        return error.code if error.code.startswith("FT2") else str(error)
    if isinstance(error, FedtuneError):
        if not isinstance(error, DataError) and not any(p.code.startswith("FT2") for p in error.problems):
            return str(error)
        codes = dict.fromkeys(problem.code for problem in error.problems)
        return f"{type(error).__name__} {' '.join(codes)}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"{type(error).__name__} {errno.errorcode.get(error.errno, error.errno)}"
    return type(error).__name__


class LineFormatter(logging.Formatter):
    """Makes one line of JSON, in ASCII, of a record: bounded, whatever the record holds."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        fields: dict[str, Any] = {
            "time": _utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "run": _cut(run) if (run := _run.get()) is not None else None,
            "round": _round.get(),
            "message": _message(record)[:_LONGEST_MESSAGE],
        }
        code = getattr(record, "code", None) or _code(error) or _code(*_arguments(record))
        if code is not None:
            fields["code"] = _cut(str(code))
        if error is not None:
            fields["error"] = [_described(each) for each in _causes(error)]
        return json.dumps(fields, ensure_ascii=True, separators=(",", ":"))


class SafeFormatter(logging.Formatter):
    """Makes a line for people of a record, with no word more than `LineFormatter` lets into a file."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        text = _message(record)[:_LONGEST_MESSAGE]
        return text if error is None else f"{text} ({words_of(error)})"


def _utc(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    if not _is_of(record.name, ("fedtune", *CARRIERS)):
        return f"a message of {record.name}, left out: {record.filename}:{record.lineno}"
    texts = not _is_of(record.name, _HOLD_ROWS)
    if not isinstance(record.msg, str):
        return str(_argument(record.msg, texts=texts))
    if not record.args:
        return record.msg
    args: Any = record.args
    if isinstance(args, Mapping):
        args = {key: _argument(value, texts=texts) for key, value in args.items()}
    else:
        args = tuple(_argument(value, texts=texts) for value in args)
    try:
        return str(record.msg % args)
    except (TypeError, ValueError, KeyError, OverflowError):
        return record.msg  # another kind of argument stands there than the text takes


def _is_of(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _argument(value: object, *, texts: bool) -> object:
    if isinstance(value, BaseException | Problem):
        return words_of(value)
    if value is None or isinstance(value, Number | PurePath):
        return value
    if isinstance(value, str) and texts:
        return _cut(value)
    return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 1] + "…"


def _arguments(record: logging.LogRecord) -> tuple[object, ...]:
    return (record.msg, *record.args) if isinstance(record.args, tuple) else (record.msg,)


def _code(*values: object) -> str | None:
    """The code of the first value that has one."""
    for value in values:
        if isinstance(value, Problem):
            return value.code
        if isinstance(value, FedtuneError):
            return value.problems[0].code
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that led to it, as a traceback would tell them."""
    current: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if current is None:
            return
        yield current
        hidden = current.__cause__ is None and current.__suppress_context__
        current = None if hidden else current.__cause__ or current.__context__


def _described(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    told = {"type": f"{kind.__module__}.{kind.__qualname__}", "frames": list(_frames(error))[-_MOST_FRAMES:]}
    words = words_of(error)
    return told if words == kind.__name__ else {**told, "text": words[:_LONGEST_CAUSE]}


def _frames(error: BaseException) -> Iterator[str]:
    for frame, line in traceback.walk_tb(error.__traceback__):
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(_PACKAGE):
            yield f"fedtune/{file.relative_to(_PACKAGE).as_posix()}:{line}"
