"""Overrides of a tiny federation in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from support import tiny_federation


@pytest.fixture
def tiny_overrides(tmp_path: Path, tiny_model_dir: Path) -> Callable[..., list[str]]:
    """Give overrides of a tiny run; keywords with dots as double underscores replace or add keys."""
    return partial(tiny_federation.tiny_overrides, tmp_path, tiny_model_dir)
