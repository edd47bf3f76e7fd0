"""The server's journal: an attempt goes on after a crash at any point, or says that it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.secure_sum import federation

from fedtune.errors import SecureAggregationError
from fedtune.secagg.collected import Trip
from fedtune.secagg.journal import ANSWER, ServerJournal, read_journal
from fedtune.secagg.messages import Kind
from fedtune.secagg.rounds import discard_journals, finish_attempt, journal_path, secure_round
from fedtune.secagg.server import ServerAttempt


class Crash(Exception):
    """The server's process ends."""


def crash_before(parties, *, answers: int):
    """A transport that dies after so many answers were handed to the server."""
    left = [answers]

    def send(requests):
        for reply in parties.send()(requests):
            if left[0] == 0:
                raise Crash
            left[0] -= 1
            yield reply

    return send


@pytest.mark.parametrize("answers", range(0, 26, 3))
def test_an_attempt_that_crashed_anywhere_is_finished(tmp_path: Path, answers: int) -> None:
    parties = federation(tmp_path, 5)
    journals = tmp_path / "journals"
    journals.mkdir()

    def run(send):
        return secure_round(
            parties.rules(), invited=parties.members, send=send, attempts=1, journals=journals
        )

    if answers < 25:
        with pytest.raises(Crash):
            run(crash_before(parties, answers=answers))
    else:
        run(parties.send())
    outcome = run(parties.send())
    vector, lanes = parties.plain_sum(range(5))
    np.testing.assert_array_equal(outcome.total.vector, vector)
    np.testing.assert_array_equal(outcome.total.lanes, lanes)
    discard_journals(journals, round_number=1)
    assert not list(journals.iterdir())


def test_a_failed_attempt_stays_failed_and_the_next_one_is_made(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4)
    path = journal_path(tmp_path, round_number=1, attempt=1)
    attempt = ServerAttempt(parties.rules(), invited=parties.members, journal=ServerJournal(path))
    with pytest.raises(SecureAggregationError, match="FT920"):
        finish_attempt(attempt, parties.send(absent={Kind.SHARE: frozenset({0, 1})}))
    with pytest.raises(SecureAggregationError, match="FT920"):
        ServerAttempt.recover(path, parties.rules())
    outcome = secure_round(
        parties.rules(), invited=parties.members, send=parties.send(), attempts=2, journals=tmp_path
    )
    assert outcome.attempts == 2


def test_a_burnt_round_stays_burnt(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4)
    path = journal_path(tmp_path, round_number=1, attempt=1)
    attempt = ServerAttempt(parties.rules(), invited=parties.members, journal=ServerJournal(path))
    with pytest.raises(SecureAggregationError, match="FT921"):
        finish_attempt(attempt, parties.send(absent={Kind.UNMASK: frozenset({0, 1})}))
    with pytest.raises(SecureAggregationError, match=r"FT921.*\n.*run run-1, round 1, attempt 1"):
        secure_round(
            parties.rules(), invited=parties.members, send=parties.send(), attempts=3, journals=tmp_path
        )


def interrupted(tmp_path: Path):
    parties = federation(tmp_path, 4)
    path = tmp_path / "journal"
    attempt = ServerAttempt(parties.rules(), invited=parties.members, journal=ServerJournal(path))
    with pytest.raises(Crash):
        finish_attempt(attempt, crash_before(parties, answers=10))
    return parties, path


def test_a_last_record_that_was_cut_off_is_dropped(tmp_path: Path) -> None:
    parties, path = interrupted(tmp_path)
    answers = sum(kind == ANSWER for kind, _ in read_journal(path))
    path.write_bytes(path.read_bytes()[:-5])
    recovered = ServerAttempt.recover(path, parties.rules())
    assert sum(kind == ANSWER for kind, _ in read_journal(path)) == answers - 1
    finish_attempt(recovered, parties.send())
    assert recovered.trip is Trip.DONE


def test_any_other_damage_and_a_foreign_journal_are_refused(tmp_path: Path) -> None:
    parties, path = interrupted(tmp_path)
    with pytest.raises(SecureAggregationError, match="FT926: the journal is not of this attempt"):
        ServerAttempt.recover(path, parties.rules(2))
    raw = bytearray(path.read_bytes())
    raw[60] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(SecureAggregationError, match="FT926: record 1 is damaged"):
        ServerAttempt.recover(path, parties.rules())
    path.write_bytes(b"")
    with pytest.raises(SecureAggregationError, match="FT926"):
        ServerAttempt.recover(path, parties.rules())


def test_a_journal_that_cannot_be_written_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(SecureAggregationError, match="FT926: cannot be opened"):
        ServerJournal(tmp_path / "missing" / "journal")
