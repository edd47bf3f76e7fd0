"""The public record of an attempt convinces whoever holds the roster, and holds no secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.secure_sum import federation

from fedtune.errors import SecureAggregationError
from fedtune.secagg.identity import Identity
from fedtune.secagg.messages import Kind
from fedtune.secagg.rounds import finish_attempt
from fedtune.secagg.transcript import check_transcript, signed_transcript


@pytest.fixture
def made(tmp_path: Path):
    parties = federation(tmp_path, 7)
    coordinator = Identity.generate()
    attempt = parties.run(absent={Kind.MASK: frozenset({2})})
    return parties, coordinator, attempt, signed_transcript(attempt, coordinator)


def test_it_names_the_cohort_and_verifies(made) -> None:
    parties, coordinator, _, text = made
    record = check_transcript(text, roster=parties.roster, coordinator=coordinator.public)
    assert record["outcome"] == "done"
    assert record["u3"] == [0, 1, 3, 4, 5, 6]
    assert len(record["confirmations"]) == 6


def test_it_holds_no_secret_that_was_opened(made) -> None:
    _, _, attempt, text = made
    for b in attempt.collected.own_b.values():
        assert b.hex() not in text
    for dealers in attempt.collected.released.values():
        for shares in dealers.values():
            assert not any(share.hex() in text for share in shares.values())


def test_any_change_and_any_other_signer_is_noticed(made) -> None:
    parties, coordinator, _, text = made
    for change in ({"u3": [0, 1]}, {"outcome": "failed"}, {"faults": [1]}, {"extra": 1}):
        changed = json.dumps(json.loads(text) | change)
        with pytest.raises(SecureAggregationError, match="FT901"):
            check_transcript(changed, roster=parties.roster, coordinator=coordinator.public)
    with pytest.raises(SecureAggregationError, match="not signed by this coordinator"):
        check_transcript(text, roster=parties.roster, coordinator=Identity.generate().public)
    with pytest.raises(SecureAggregationError, match="not a transcript"):
        check_transcript("[]", roster=parties.roster, coordinator=coordinator.public)


def test_a_coordinator_cannot_make_up_confirmations(made) -> None:
    parties, coordinator, attempt, _ = made
    attempt.collected.confirmations[0] = bytes(64)
    with pytest.raises(SecureAggregationError, match="FT905: member 0 did not confirm"):
        check_transcript(
            signed_transcript(attempt, coordinator), roster=parties.roster, coordinator=coordinator.public
        )


def test_a_failed_attempt_has_a_transcript_with_its_faults(tmp_path: Path) -> None:
    parties = federation(tmp_path, 4)
    coordinator = Identity.generate()
    parties.clients[0] = parties.client(0)
    attempt = parties.attempt()
    with pytest.raises(SecureAggregationError, match="FT920"):
        finish_attempt(attempt, parties.send(absent={Kind.SHARE: frozenset({2, 3})}))
    record = check_transcript(
        signed_transcript(attempt, coordinator), roster=parties.roster, coordinator=coordinator.public
    )
    assert record["outcome"] == "failed"
    assert record["faults"][0]["site"] == "site-0000"
