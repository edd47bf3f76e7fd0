"""The reference page says what the schema says."""

import re
from pathlib import Path

import pytest

from fedtune.config.keys import keys
from fedtune.config.reference import reference_page

DOCS = Path(__file__).parents[2] / "docs" / "reference"
PACKAGE = Path(__file__).parents[2] / "fedtune"


def test_the_page_is_what_the_command_writes() -> None:
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    assert page == reference_page(), (
        "run: python -m fedtune.config.reference > docs/reference/configuration.md"
    )


def test_every_key_has_a_row() -> None:
    page = reference_page()
    assert all(f"| `{name}` |" in page for name in keys())


@pytest.mark.parametrize("family", ["1", "8"])
def test_every_code_that_is_raised_has_a_page_with_its_three_parts(family: str) -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    codes = set(re.findall(rf'"(FT{family}\d\d)"', source))
    assert codes
    for code in sorted(codes):
        page = (DOCS / "errors" / f"{code}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {code}: "), code
        assert f"    {code}: " in page, f"{code} shows no example of its message"
        assert "## What to do" in page, code
