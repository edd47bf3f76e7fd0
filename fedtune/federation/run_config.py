"""Keys of Flower's run config, by which a run reaches its ServerApp and the sites."""

from __future__ import annotations

from typing import Final

__all__ = ["CLIENTS_KEY", "CONFIG_KEY", "SPLIT_KEY", "VERSION_KEY"]

CONFIG_KEY: Final = "fedtune-config"
"""The resolved configuration, as JSON."""

CLIENTS_KEY: Final = "fedtune-clients"
"""How many clients there are."""

SPLIT_KEY: Final = "fedtune-split"
"""What a simulation knows of the labels at each site: JSON, or empty."""

VERSION_KEY: Final = "fedtune-version"
"""The version of a coordinator's fedtune."""
