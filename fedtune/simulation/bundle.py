"""The Flower app bundle: two entry points of a few lines, and no fedtune.

Flower packs a folder with a ``pyproject.toml`` and runs what it names. The folder made here holds only
``server/app.py`` and ``client/app.py``, which import the **installed** fedtune; a copy of fedtune in the
bundle would shadow the one that was installed and audited.
"""

from __future__ import annotations

from pathlib import Path

import fedtune

__all__ = ["write_bundle"]

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
"""


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
