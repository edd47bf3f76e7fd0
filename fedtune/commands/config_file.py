"""A federation's configuration as a coordinator hands it out: a run directory, its YAML, or JSON."""

from __future__ import annotations

from pathlib import Path

from fedtune.config.schema import Config
from fedtune.config.wire import MAX_CONFIG_CHARACTERS, config_from_json, config_from_yaml
from fedtune.errors import ConfigError, Problem

__all__ = ["read_config_file"]


def read_config_file(path: Path) -> Config:
    """Read a configuration.

    Args:
        path: A run directory, or a file in the form of its ``config.yaml`` or of the JSON that is sent.

    Raises:
        ConfigError: FT107, it cannot be read; otherwise every problem of it.
    """
    file = path / "config.yaml" if path.is_dir() else path
    fix = "name the config.yaml of a run directory, or the JSON that the coordinator sent"
    try:
        with file.open(encoding="utf-8") as stream:
            text = stream.read(MAX_CONFIG_CHARACTERS + 1)
    except OSError as error:
        what = f"the configuration cannot be read: {error.strerror}"
        raise ConfigError(Problem(code="FT107", what=what, where=str(file), fix=fix)) from None
    except UnicodeDecodeError as error:
        what = f"the configuration is not UTF-8 at byte {error.start}"
        raise ConfigError(Problem(code="FT107", what=what, where=str(file), fix=fix)) from None
    read = config_from_json if text.lstrip().startswith("{") else config_from_yaml
    return read(text, where=str(file))
