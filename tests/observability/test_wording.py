"""Numbers as people read them."""

from __future__ import annotations

import pytest

from fedtune.observability import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0.0 s"), (8.34, "8.3 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (245.1, "4 min 5 s"),
     (3599.7, "1 h 0 min"), (7920, "2 h 12 min"), (None, "–")],
)  # fmt: skip
def test_seconds(value: float | None, text: str) -> None:
    assert wording.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (9_732_096, "9.3 MiB"), (150 * 2**20, "150 MiB"),
     (3 * 2**40, "3072 GiB"), (None, "–")],
)  # fmt: skip
def test_bytes(value: float | None, text: str) -> None:
    assert wording.bytes_(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1, "about 5 s"), (22, "about 20 s"), (57.4, "about 55 s"), (58, "about 1 min"),
                        (168, "about 3 min"), (5399, "about 90 min"), (9000, "about 2.5 h")],
)  # fmt: skip
def test_an_estimate_is_no_finer_than_it_is_known(value: float, text: str) -> None:
    assert wording.about(value) == text


def test_losses_shares_counts_and_lists() -> None:
    assert wording.loss(2.538) == "2.54"
    assert wording.loss(0.0891) == "0.089"
    assert wording.loss(None) == "–"
    assert wording.signed(-0.1) == "−0.10"
    assert wording.signed(0.03) == "+0.03"
    assert wording.percent(0.913) == "91 %"
    assert wording.percent(0.0059) == "0.6 %"
    assert wording.percent(0.0) == "0 %"
    assert wording.count(134_515_008) == "134,515,008"
    assert wording.mebibytes(1612.5) == "1.6 GiB"
    assert wording.listing([]) == ""
    assert wording.listing(["A"]) == "A"
    assert wording.listing(["A", "B", "C"]) == "A, B and C"
    assert wording.rounds_(1) == "1 round"
    assert wording.rounds_(0) == "0 rounds"
