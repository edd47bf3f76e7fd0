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
    # To renew it: python -m fedtune.config.reference > docs/reference/configuration.md
    assert page == reference_page()


def test_every_key_has_a_row() -> None:
    page = reference_page()
    assert all(f"| `{name}` |" in page for name in keys())


CODES = sorted(
    {
        code
        for path in PACKAGE.rglob("*.py")
        for code in re.findall(r'"(FT\d\d\d)"', path.read_text(encoding="utf-8"))
    }
)


@pytest.mark.parametrize("code", CODES)
def test_every_code_that_is_raised_has_a_page_with_an_example(code: str) -> None:
    page = (DOCS / "errors" / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert re.search(rf"^(    .*)?{code}", page, flags=re.MULTILINE), "no example of the message"
