"""Fixtures that the tests of every folder share."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# No test is timed: a busy machine is no failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Tests are not a package (import-mode=importlib): their helpers are found from here.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a two-layer Llama with a byte-level ChatML tokenizer; made in milliseconds."""
    from support.tiny_model import make_tiny_model

    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="session")
def smollm2_cache() -> Path:
    """The machine's own model cache, with SmolLM2-135M converted in it: 25 s once, then nothing."""
    from support.model_settings import SMOLLM2, model_config

    from fedtune.models.cache import cache_folder
    from fedtune.models.gguf import converted
    from fedtune.models.resolve import resolve

    settings = model_config(SMOLLM2)
    converted(resolve(settings).path, cache_folder(settings))
    return cache_folder(settings)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what takes minutes, unless it is asked for: all of it is longer than a test run may be."""
    if os.environ.get("FEDTUNE_SLOW") == "1":
        return
    skipped = pytest.mark.skip(reason="takes minutes: FEDTUNE_SLOW=1 runs it")
    for item in items:
        if item.get_closest_marker("slow") is not None:
            item.add_marker(skipped)
