"""Every code of the package has its page, and every page its code."""

from __future__ import annotations

import re
from pathlib import Path

import fedtune.secagg
from fedtune.secagg.problems import FIXES, problem

ROOT = Path(__file__).parents[2]
PACKAGE = Path(fedtune.secagg.__file__).parent


def used_codes() -> set[str]:
    sources = [path for path in PACKAGE.glob("*.py") if path.name != "problems.py"]
    return {code for path in sources for code in re.findall(r'"(FT9\d\d)"', path.read_text())}


def test_every_code_is_in_the_table_and_is_raised_somewhere() -> None:
    assert used_codes() == set(FIXES)


def test_every_code_has_a_page_that_starts_with_it() -> None:
    pages = {path.stem: path.read_text() for path in (ROOT / "docs/reference/errors").glob("FT9*.md")}
    assert set(pages) == set(FIXES)
    for code, text in pages.items():
        assert text.startswith(f"# {code}: ")
        assert f"{code}:" in text.split("\n", 1)[1], f"{code} shows no example of its message"


def test_a_problem_says_what_where_and_what_to_do() -> None:
    assert str(problem("FT908", "too few", where="U1")).splitlines()[0] == "FT908: too few"
