"""A site that joined, and nothing of this machine's own network settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.site_folder import JoinedSite
from support.wayside import unused_port


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(scope="package")
def joined(tmp_path_factory: pytest.TempPathFactory) -> JoinedSite:
    """A site whose server is at a port of this machine where nobody listens yet."""
    return JoinedSite(root=tmp_path_factory.mktemp("joined"), address=f"localhost:{unused_port()}")


@pytest.fixture(scope="package")
def server(joined: JoinedSite) -> tuple[Path, Path]:
    """The right certificate and key."""
    return joined.server.certificate_path, joined.server.key
