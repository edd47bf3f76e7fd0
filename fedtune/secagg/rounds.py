"""A round of secure aggregation from the coordinator's chair: attempts, retries, and life after a crash.

The transport is one function: it delivers a batch of requests and gives back the replies that came in time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from fedtune.errors import SecureAggregationError
from fedtune.secagg.collected import AttemptRules, Fault, SecureSum, Trip
from fedtune.secagg.journal import ServerJournal
from fedtune.secagg.problems import problem
from fedtune.secagg.server import ServerAttempt

__all__ = [
    "RoundOutcome",
    "Send",
    "Trips",
    "discard_journals",
    "finish_attempt",
    "journal_path",
    "round_trips",
    "secure_round",
]

Send = Callable[[Mapping[bytes, bytes]], Iterable[bytes]]
"""Requests by identity in, replies out; a member that does not answer in time is simply not among them."""

T = TypeVar("T")

Trips: TypeAlias = Generator[Mapping[bytes, bytes], Iterable[bytes], T]
"""Gives the requests of one trip after another, takes the replies of each, and ends with the result."""


@dataclass(frozen=True, kw_only=True)
class RoundOutcome:
    """A round that was opened.

    Attributes:
        total: The sum.
        attempt: The attempt that gave it, for its transcript.
        faults: Of all attempts at the round, in their order.
        attempts: How many it took.
    """

    total: SecureSum
    attempt: ServerAttempt
    faults: tuple[Fault, ...]
    attempts: int


def finish_attempt(attempt: ServerAttempt, send: Send) -> SecureSum:
    """Take an attempt from the trip where it stands to its sum.

    Raises:
        SecureAggregationError: FT920, it may be retried; FT921, the round is burnt.
    """
    return _carried_by(send, _trips_of(attempt))


def _trips_of(attempt: ServerAttempt) -> Trips[SecureSum]:
    while attempt.trip is not Trip.DONE:
        for reply in (yield attempt.requests()):
            attempt.receive(reply)
        attempt.advance()
    return attempt.result


def _carried_by(send: Send, trips: Trips[T]) -> T:
    try:
        requests = next(trips)
        while True:
            requests = trips.send(send(requests))
    except StopIteration as done:
        result: T = done.value
        return result


def secure_round(
    rules: AttemptRules,
    *,
    invited: frozenset[bytes],
    send: Send,
    attempts: int,
    journals: Path | None = None,
) -> RoundOutcome:
    """Open one sum of one round, with up to `attempts` attempts of fresh keys over the same updates.

    Args:
        rules: Of the first attempt; its number in the binding is counted up.
        invited: Members whose updates are ready.
        send: The transport.
        attempts: Most attempts at the round.
        journals: Folder of this run's journals. An attempt that a crash interrupted is found there and
            finished; the caller deletes the round's files (`discard_journals`) when its result is kept.

    Raises:
        SecureAggregationError: FT920 after the last attempt; FT921, the round is burnt: go on from the
            adapter before it, and count its updates as spent.
    """
    return _carried_by(send, round_trips(rules, invited=invited, attempts=attempts, journals=journals))


def round_trips(
    rules: AttemptRules, *, invited: frozenset[bytes], attempts: int, journals: Path | None = None
) -> Trips[RoundOutcome]:
    """Do what `secure_round` does, for a caller that carries the trips of several sums together."""
    faults: list[Fault] = []
    problems = [problem("FT920", f"no attempt was made, {attempts} were allowed", where="secagg.attempts")]
    for number in range(rules.binding.attempt, rules.binding.attempt + attempts):
        current = replace(rules, binding=replace(rules.binding, attempt=number))
        attempt = None
        try:
            attempt = _attempt(current, invited, journals)
            total = yield from _trips_of(attempt)
        except SecureAggregationError as error:
            if error.problems[0].code != "FT920":
                raise
            problems = list(error.problems)
        else:
            faults += attempt.collected.faults
            return RoundOutcome(
                total=total,
                attempt=attempt,
                faults=tuple(faults),
                attempts=number - rules.binding.attempt + 1,
            )
        if attempt is not None:
            faults += attempt.collected.faults
            invited = invited - attempt.suspects()
    raise SecureAggregationError(problems)


def journal_path(folder: Path, *, round_number: int, attempt: int) -> Path:
    """Where an attempt's journal is."""
    return folder / f"{round_number:04}-{attempt:02}.journal"


def discard_journals(folder: Path, *, round_number: int) -> None:
    """Delete a round's journals, once its result is on disk or it was given up."""
    for path in folder.glob(f"{round_number:04}-*.journal"):
        path.unlink()


def _attempt(rules: AttemptRules, invited: frozenset[bytes], journals: Path | None) -> ServerAttempt:
    if journals is None:
        return ServerAttempt(rules, invited=invited)
    path = journal_path(journals, round_number=rules.binding.round, attempt=rules.binding.attempt)
    if path.exists() and path.stat().st_size:
        return ServerAttempt.recover(path, rules)
    return ServerAttempt(rules, invited=invited, journal=ServerJournal(path))
