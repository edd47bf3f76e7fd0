"""One federation of a server and four sites for all tests of this folder, which use it one after another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli_federation import CliFederation, cli_federation


@pytest.fixture(scope="package")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[CliFederation]:
    path = tmp_path_factory.mktemp("cli") / "federation"
    with cli_federation(path, tiny_model_dir) as federation:
        yield federation
