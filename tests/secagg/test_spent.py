"""The journals on a site's disk: what is opened stays opened, and damage is noticed."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from support.secure_sum import hash_of, roster_of

from fedtune.errors import SecureAggregationError
from fedtune.secagg.cohorts import CohortLog
from fedtune.secagg.spent import SpentJournal, UpdateOrigin


def origin(name: str = "samples", **changes: bytes) -> UpdateOrigin:
    fields = {"base": hash_of("base"), "adapter": hash_of("adapter"), "config": hash_of("config")}
    return UpdateOrigin(**(fields | {"samples": hash_of(name)} | changes))


def spend(journal: SpentJournal, spent: UpdateOrigin, run: str = "run") -> None:
    journal.spend(spent, run=run, round_number=1, attempt=1)


def test_an_origin_is_spent_once_in_any_run_and_process(tmp_path: Path) -> None:
    spend(SpentJournal(tmp_path / "spent"), origin())
    for run in ("run", "another run"):
        with pytest.raises(SecureAggregationError, match=r"FT912.*opened in run run, round 1, attempt 1"):
            spend(SpentJournal(tmp_path / "spent"), origin(), run=run)
    with pytest.raises(SecureAggregationError, match="FT912"):
        SpentJournal(tmp_path / "spent").check(origin())


@pytest.mark.parametrize("field", ["base", "adapter", "config", "samples"])
def test_another_base_adapter_config_or_sample_is_another_origin(tmp_path: Path, field: str) -> None:
    journal = SpentJournal(tmp_path / "spent")
    spend(journal, origin())
    spend(journal, origin(**{field: hash_of("other")}))


def test_only_an_operator_with_a_name_and_a_reason_releases_and_once(tmp_path: Path) -> None:
    journal = SpentJournal(tmp_path / "spent")
    with pytest.raises(SecureAggregationError, match="not spent"):
        journal.release(origin(), operator="Dr. A", reason="rerun")
    spend(journal, origin())
    with pytest.raises(SecureAggregationError, match="operator's name"):
        journal.release(origin(), operator=" ", reason="rerun")
    journal.release(origin(), operator="Dr. A", reason="rerun")
    assert journal.entries()[-1]["operator"] == "Dr. A"
    spend(journal, origin())
    with pytest.raises(SecureAggregationError, match="FT912"):
        spend(journal, origin())


def test_a_line_cut_off_by_a_crash_is_dropped_and_any_other_damage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "spent"
    journal = SpentJournal(path)
    spend(journal, origin("one"))
    with path.open("ab") as file:
        file.write(b'{"v": 1, "event": "spe')
    spend(journal, origin("two"))
    assert [line["event"] for line in journal.entries()] == ["spent", "spent"]
    path.write_bytes(b"nonsense\n" + path.read_bytes())
    with pytest.raises(SecureAggregationError, match="FT919: line 1 is damaged"):
        spend(journal, origin("three"))


def test_a_journal_that_cannot_be_written_signs_nothing(tmp_path: Path) -> None:
    with pytest.raises(SecureAggregationError, match="FT919: cannot be opened"):
        spend(SpentJournal(tmp_path / "missing" / "spent"), origin())


def test_the_journal_holds_hashes_and_no_more(tmp_path: Path) -> None:
    spend(SpentJournal(tmp_path / "spent"), origin())
    line = json.loads((tmp_path / "spent").read_text())
    assert set(line) == {
        "v",
        "event",
        "time",
        "run",
        "round",
        "attempt",
        "base",
        "adapter",
        "config",
        "samples",
    }
    assert (tmp_path / "spent").stat().st_mode & 0o777 == 0o600


def _try_to_spend(path: Path, results) -> None:
    try:
        spend(SpentJournal(path), origin())
        results.put("spent")
    except SecureAggregationError:
        results.put("refused")


def test_of_several_processes_exactly_one_spends(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    workers = [context.Process(target=_try_to_spend, args=(tmp_path / "spent", results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    outcomes = sorted(results.get() for _ in workers)
    assert outcomes == ["refused", "refused", "refused", "spent"]


def test_cohorts_that_differ_by_one_site_are_warned_of_by_name(tmp_path: Path) -> None:
    roster, identities = roster_of(5)
    keys = [identity.public for identity in identities]
    log = CohortLog(tmp_path / "cohorts")

    def record(members: list[bytes], number: int):
        return log.record(frozenset(members), run="r", round_number=number, roster=roster)

    assert record(keys, 1) == ()
    assert record(keys, 2) == ()
    (warning,) = record(keys[1:], 3)
    assert warning.code == "FT927"
    assert "differ by site-0000 alone" in warning.what
    assert record(keys[:3], 4) == ()
