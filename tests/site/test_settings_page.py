"""``client.yaml``: what is written can be read, and the page of reference says what the settings say."""

from __future__ import annotations

from pathlib import Path

from fedtune.site.settings import SETTINGS, written
from fedtune.site.settings_reference import reference_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "client-settings.md"


def test_the_page_is_what_the_command_writes() -> None:
    # To renew it: python -m fedtune.site.settings_reference > docs/reference/client-settings.md
    page = PAGE.read_text(encoding="utf-8")
    assert page == reference_page()
    assert all(f"| `{name}` |" in page for name in SETTINGS.keys)
    assert all(key.description for key in SETTINGS.keys.values())


def test_a_model_whose_name_says_where_it_is_has_no_place_of_its_own() -> None:
    settings = SETTINGS.parse(written(model="package:a/b.gguf", place=None), where="client.yaml")
    assert settings.models == {"package:a/b.gguf": None}
