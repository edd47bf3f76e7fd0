"""What a site remembers: where each round began, whatever was asked in between."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtune.errors import RunError
from fedtune.federation.site import WalkPosition


def test_a_new_site_begins_at_its_first_example(tmp_path: Path) -> None:
    assert WalkPosition(tmp_path, "heart").before(1) == 0


def test_a_round_that_is_asked_for_again_begins_where_it_began(tmp_path: Path) -> None:
    position = WalkPosition(tmp_path, "heart")
    position.advance(1, 32)
    position.advance(2, 64)
    assert position.before(2) == 32
    position.advance(2, 64)
    assert WalkPosition(tmp_path, "heart").before(3) == 64


def test_a_run_resumed_earlier_forgets_the_later_rounds(tmp_path: Path) -> None:
    position = WalkPosition(tmp_path, "heart")
    for done in (1, 2, 3):
        position.advance(done, done * 10)
    position.advance(2, 20)
    assert position.before(4) == 20


@given(rounds=st.lists(st.integers(1, 40), min_size=1, max_size=30, unique=True).map(sorted))
def test_the_position_is_that_of_the_last_round_taken_part_in(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[int]
) -> None:
    position = WalkPosition(tmp_path_factory.mktemp("site"), "a/b ../c")
    for number, done in enumerate(rounds):
        assert position.before(done) == number * 4
        position.advance(done, (number + 1) * 4)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"v": 2, "steps_after_round": {}}',
        '{"v": 1}',
        '{"v": 1, "steps_after_round": {"1": -4}}',
        '{"v": 1, "steps_after_round": {"x": 1}}',
    ],
)
def test_a_damaged_record_stops_the_site_instead_of_repeating_examples(tmp_path: Path, text: str) -> None:
    (tmp_path / "heart.json").write_text(text)
    with pytest.raises(RunError, match="FT720"):
        WalkPosition(tmp_path, "heart").before(2)


def test_names_cannot_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sites"
    WalkPosition(folder, "../../outside").advance(1, 4)
    assert [path.parent for path in tmp_path.rglob("*.json")] == [folder]
