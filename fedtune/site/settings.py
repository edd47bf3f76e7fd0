"""``client.yaml``: what is particular to this machine; what the site allows stands in ``site.yaml``."""

from __future__ import annotations

import dataclasses
import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from fedtune.config.schema import Config, ModelConfig
from fedtune.config.typed_yaml import TypedYaml, quoted
from fedtune.errors import MachineError, Problem

__all__ = ["SETTINGS", "SiteSettings", "here", "load_settings", "local_model", "written"]

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _in_words(words: str) -> JsonDict:
    return {"words": words}


def _on_loopback(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        local = ipaddress.ip_address(host.strip("[]")).is_loopback and 0 < int(port) <= 65_535
    except ValueError:
        local = False
    if not local:
        raise ValueError("name an address of this machine alone, such as 127.0.0.1:9465")
    return address


Name = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65_535)]
LocalAddress = Annotated[
    str,
    AfterValidator(_on_loopback),
    Field(json_schema_extra=_in_words("an address of this machine alone with its port")),
]
HostPort = Annotated[str, Field(pattern=r"^.+:[0-9]{1,5}$", json_schema_extra=_in_words("host:port"))]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SiteSettings:
    """How a site's client runs on this machine."""

    version: Literal[1]
    """Version of this file's format."""

    models: dict[Name, Name | None]
    """Base models that are here: as a federation's ``model.name`` calls it, and the directory, ``.gguf``
    file or ``package:NAME/FILE`` that holds it; null where the name says it. Nothing else is looked for."""

    cache_dir: Name | None
    """Folder of converted models; null means ``$FEDTUNE_CACHE_DIR`` or ``~/.cache/fedtune``."""

    device: Literal["auto", "cpu", "cuda"]
    """Where the model lives."""

    threads: Annotated[int, Field(ge=1)] | None
    """CPU threads of training; null takes what the run says, else the physical cores."""

    node_port: Port | None
    """Where this site's Flower node hands out tasks on 127.0.0.1; null takes a free port at each start."""

    health: LocalAddress | None
    """Where ``/health`` and ``/metrics`` are served, on this machine alone; null for nowhere."""

    syslog: HostPort | None
    """Where heads of the audit log are sent, by UDP; null for nowhere."""

    log_mib: Annotated[int, Field(ge=1)]
    """Most MiB of logs that are kept."""


SETTINGS: Final = TypedYaml(
    kind=SiteSettings,
    noun="the client's settings",
    fix="start from those that `fedtune client init` writes",
    code=680,
)


def load_settings(path: Path) -> SiteSettings:
    """Read ``client.yaml``.

    Raises:
        MachineError: FT680 for a file that cannot be used; otherwise every problem in it: FT681 an unknown
            key, FT682 a value that a key does not take, FT683 a key without a value.
    """
    return SETTINGS.load(path).value


def local_model(model: ModelConfig, settings: SiteSettings) -> ModelConfig:
    """Return what a run's model is on this machine.

    Raises:
        MachineError: FT644, the settings do not name it.
    """
    if model.name not in settings.models:
        raise MachineError(
            Problem(
                code="FT644",
                what=f"this site has no base model that is called {model.name!r:.120}",
                where="models in client.yaml",
                fix="put it there with the place of its files, or ask the coordinator for another model.name",
            )
        )
    return dataclasses.replace(
        model,
        name=settings.models[model.name] or model.name,
        cache_dir=settings.cache_dir,
        device=settings.device,
    )


def here(config: Config, settings: SiteSettings, *, files: tuple[str, ...], runs_dir: Path) -> Config:
    """Return a coordinator's configuration as it holds on this machine: its model, its rows, its folders.

    Args:
        config: The coordinator's.
        settings: This site's.
        files: The site's own rows, which the policy names.
        runs_dir: Where the site keeps what it remembers of runs.

    Raises:
        MachineError: FT644, a model that the settings do not name.
    """
    return dataclasses.replace(
        config,
        runs_dir=str(runs_dir),
        model=local_model(config.model, settings),
        data=dataclasses.replace(config.data, source="files", files=files),
        training=dataclasses.replace(config.training, threads=settings.threads or config.training.threads),
    )


def written(*, model: str, place: str | None) -> str:
    """Return the text of a ``client.yaml`` with comments and the values that suit most."""
    return f"""\
# How this site's client runs on this machine. Every key has to be there; read when `fedtune client start`
# starts.

version: 1

# Base models that are here: as the federation calls it, and the directory or file that holds it; null where
# the name says it. Nothing else is looked for, neither on this machine nor on the internet.
models:
  {quoted(model)}: {"null" if place is None else quoted(place)}

# Folder of converted models; null for FEDTUNE_CACHE_DIR or ~/.cache/fedtune.
cache_dir: null

# auto, cpu or cuda; threads: null takes what the run says, else the physical cores.
device: auto
threads: null

# On 127.0.0.1: where this site's Flower node hands out tasks; null takes a free port at each start.
node_port: null

# Where /health and /metrics are served on this machine alone; null for nowhere.
health: 127.0.0.1:9465

# host:port of a syslog that gets each head of the audit log, so that a cut tail shows; null for none.
syslog: null

# Most MiB of logs.
log_mib: 100
"""
