"""Overrides of a tiny federation in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support import tiny_federation

Overrides = Callable[..., list[str]]


@pytest.fixture
def tiny_overrides(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., list[str]]:
    """Give overrides of a tiny run; keywords with dots as double underscores replace or add keys."""
    return partial(tiny_federation.tiny_overrides, tmp_path, tiny_model_dir)


SEVEN = {f"site{number}": 10 for number in range(7)}


@pytest.fixture
def seven(tiny_overrides: Overrides, tmp_path: Path) -> Overrides:
    """Give overrides of a run of seven sites, of which site1 can be made to lie."""
    tiny_federation.write_rows(tmp_path / "rows.jsonl", SEVEN)
    return partial(tiny_overrides, aggregation="ffa", attack__sites="[site1]", evaluation__generations=0)
