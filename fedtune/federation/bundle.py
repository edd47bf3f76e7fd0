"""The Flower app bundle: two entry points of a few lines, and no fedtune.

Flower packs a folder with a ``pyproject.toml`` and runs what it names. The folder made here holds only
``server/app.py`` and ``client/app.py``, which import the **installed** fedtune; a copy of fedtune in the
bundle would shadow the one that was installed and audited.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flwr.cli.build import build_fab_from_disk

import fedtune

__all__ = ["Bundle", "installed_bundle", "write_bundle"]

PYPROJECT = """\
[project]
name = "fedtune-app"
version = "{version}"
description = "Entry points of fedtune; the library itself is installed, not bundled."
license = {{ file = "LICENSE" }}
dependencies = []

[tool.flwr.app]
publisher = "fedtune"
fab-include = ["server/app.py", "client/app.py"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
fedtune-config = ""
fedtune-clients = 0
fedtune-split = ""
fedtune-version = ""
"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle as Flower sends it.

    Attributes:
        content: Its bytes.
        sha256: Of them, in hex.
    """

    content: bytes
    sha256: str


@cache
def installed_bundle() -> Bundle:
    """Return the bundle that this installation makes: the same on every machine with the same versions.

    A site that finds this very hash with a message knows the coordinator's code without reading it.
    """
    with tempfile.TemporaryDirectory(prefix="fedtune-bundle-") as folder:
        # Flower checks the folder's name as it would a project's.
        content = _stored(build_fab_from_disk(write_bundle(Path(folder) / "fedtune-app")))
    return Bundle(content=content, sha256=hashlib.sha256(content).hexdigest())


def _stored(archive: bytes) -> bytes:
    """Return a zip archive with the same files, uncompressed: what compresses them differs by machine."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as packed, zipfile.ZipFile(result, "w") as stored:
        for name in packed.namelist():
            entry = zipfile.ZipInfo(name)  # of 1 January 1980
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            stored.writestr(entry, packed.read(name))
    return result.getvalue()


def write_bundle(folder: Path) -> Path:
    """Write the app folder that ``flwr run`` packs.

    The entry points are those of the checkout, or their copies in the wheel.

    Args:
        folder: Where to write; made if needed.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(PYPROJECT.format(version=fedtune.__version__), encoding="utf-8")
    (folder / "LICENSE").write_text("Apache-2.0\n", encoding="utf-8")
    (folder / "README.md").write_text("The entry points of fedtune for Flower.\n", encoding="utf-8")
    for side in ("server", "client"):
        (folder / side).mkdir(exist_ok=True)
        source = _entry_points() / side / "app.py"
        (folder / side / "app.py").write_bytes(source.read_bytes())
    return folder


def _entry_points() -> Path:
    package = Path(fedtune.__file__).parent
    in_wheel = package / "entry_points"
    return in_wheel if in_wheel.is_dir() else package.parent
