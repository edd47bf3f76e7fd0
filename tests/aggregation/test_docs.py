"""The page names every method, defence, optimizer and attack that there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtune.config.location import config_dir
from fedtune.config.methods import METHODS
from fedtune.config.overrides import options

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "aggregation.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_row_that_says_how_it_is_exact(method: str) -> None:
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{method}` |")]
    exact = row.split("|")[4].strip()
    assert exact.startswith(("yes", "until")) == METHODS[method].exact
    kept = row.split("|")[6].strip()
    assert (kept == "dropped") == METHODS[method].resets_moments
    assert row.split("|")[5].strip().startswith("a sum") == (
        METHODS[method].summable or METHODS[method].sketches
    )


@pytest.mark.parametrize("group", ["defence", "server_optimizer", "attack", "asynchronous", "speed"])
def test_every_option_is_named(group: str) -> None:
    for option in options(group, (config_dir(),)):
        assert option == "none" or option in PAGE, f"{group}={option}"
