"""What the doctor takes from a site's own settings, which `client.yaml` holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = ["Defaults", "Settings"]


class Settings(Protocol):
    """Where the base model is and what it may use; any object with these attributes will do."""

    @property
    def models(self) -> Mapping[str, str | None]:
        """Base models that are here: as ``model.name`` calls them, and where they are if that does not
        say it.
        """

    @property
    def cache_dir(self) -> str | None:
        """As ``model.cache_dir``."""

    @property
    def device(self) -> Literal["auto", "cpu", "cuda"]:
        """As ``model.device``."""

    @property
    def threads(self) -> int | None:
        """CPU threads of training; None takes the physical cores."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """The settings of a site that has none of its own."""

    models: Mapping[str, str | None] = field(default_factory=dict)
    cache_dir: str | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int | None = None
