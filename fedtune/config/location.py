"""Where the shipped configuration groups are."""

from __future__ import annotations

from pathlib import Path

import fedtune
from fedtune.errors import ConfigError, Problem

__all__ = ["config_dir"]


def config_dir() -> Path:
    """The folder of the shipped configuration groups.

    In a wheel it is the package's own ``conf``, in a checkout the ``conf`` beside the package.

    Raises:
        ConfigError: When neither is there: the installation is incomplete.
    """
    package = Path(fedtune.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(
        Problem(
            code="FT108",
            what="the configuration groups are missing from this installation",
            where=str(package / "conf"),
            fix="reinstall fedtune: pip install --force-reinstall --no-deps fedtune",
        )
    )
