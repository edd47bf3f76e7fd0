"""An error's page shows the message that fedtune prints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fedtune.errors import FedtuneError

__all__ = ["PAGES", "assert_page_shows_the_message"]

PAGES = Path(__file__).parents[2] / "docs" / "reference" / "errors"


def assert_page_shows_the_message(code: str, provoke: Callable[[], object]) -> None:
    """Provoke an error; its page begins with its code, shows its message as printed, and says what to do."""
    with pytest.raises(FedtuneError) as caught:
        provoke()
    message = str(caught.value.problems[0])
    assert message.startswith(f"{code}: ")
    page = (PAGES / f"{code}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {code}: ")
    assert "\n## What to do\n" in page
    assert "\n".join(f"    {line}" for line in message.splitlines()) in page
