"""``server.yaml``: what is written can be read, and the page of reference says what the settings say."""

from __future__ import annotations

from pathlib import Path

from fedtune.coordinator.settings import SETTINGS, written
from fedtune.coordinator.settings_reference import reference_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "server-settings.md"


def test_the_page_is_what_the_command_writes() -> None:
    # To renew it: python -m fedtune.coordinator.settings_reference > docs/reference/server-settings.md
    page = PAGE.read_text(encoding="utf-8")
    assert page == reference_page()
    assert all(f"| `{name}` |" in page for name in SETTINGS.keys)
    assert all(key.description for key in SETTINGS.keys.values())


def test_names_with_quotes_are_written_so_that_they_are_read_again() -> None:
    text = written(federation='a "b" \\c', address="[::1]:9092", listen="[::]:9092", superlink_port=1)
    settings = SETTINGS.parse(text, where="server.yaml")
    assert (settings.federation, settings.address) == ('a "b" \\c', "[::1]:9092")
