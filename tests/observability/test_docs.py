"""The reference pages say what the code does."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from support.synthetic_run import synthetic_run

import fedtune.observability
from fedtune.observability.events import EVENT_TYPES
from fedtune.observability.summary import summarise

ROOT = Path(fedtune.observability.__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("name", EVENT_TYPES)
def test_the_reference_lists_every_field_of_every_event_and_no_other(name: str) -> None:
    section = re.search(rf"### {name}\n(.*?)\n##", (REFERENCE / "rounds.md").read_text(), re.DOTALL)
    assert section is not None
    listed = {
        field
        for row in re.findall(r"^\| (`.*?) \|", section[1], re.MULTILINE)
        for field in re.findall(r"`(\w+)`", row)
    }
    assert listed == {field.name for field in fields(EVENT_TYPES[name])} - {"time"}


def test_the_reference_lists_every_key_of_the_summary_and_no_other() -> None:
    text = (REFERENCE / "rounds.md").read_text().partition("## The summary")[2]
    listed = {
        key for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)
    }
    summary = summarise(synthetic_run())
    assert listed == set(summary)
    columns = re.search(r"^\| `round_table` \|(.*)$", text, re.MULTILINE)
    assert columns is not None
    assert set(re.findall(r"`(\w+)`", columns[1])) == set(summary["round_table"][0])


def test_every_code_of_the_package_has_a_page_with_its_own_title_and_example() -> None:
    sources = "".join(path.read_text() for path in Path(fedtune.observability.__file__).parent.rglob("*.py"))
    codes = set(re.findall(r'code="(FT\d{3})"', sources))
    assert codes == {f"FT70{number}" for number in range(1, 8)}
    for code in codes:
        page = (REFERENCE / "errors" / f"{code}.md").read_text()
        assert page.startswith(f"# {code}: ")
        assert f"\n    {code}: " in page
        assert "\n## What to do\n" in page
