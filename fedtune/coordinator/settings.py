"""``server.yaml``: where the coordinator's server listens, and what it does when something happens.

What a run does is not here: that is the run's own configuration.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from fedtune.config.typed_yaml import TypedYaml, quoted
from fedtune.coordinator.notify_settings import Kind, NotifySettings, parse_notify

__all__ = [
    "SETTINGS",
    "GateLimits",
    "NotifySection",
    "ServerSettings",
    "load_settings",
    "notify_settings",
    "written",
]

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _in_words(words: str) -> JsonDict:
    return {"words": words}


Name = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65_535)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class GateLimits:
    """What the gate lets one site ask of the server."""

    body_mib: PositiveInt
    """Most MiB of one request; Flower sends an adapter in pieces of 5 MiB."""

    requests_per_second: PositiveFloat
    """Of one address, in the long run; sites behind one router share it."""

    burst: PositiveInt
    """Requests of one address at once."""

    connections: PositiveInt
    """Connections of all addresses at once."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class NotifySection:
    """Whom to tell."""

    command: tuple[Name, ...] | None
    """A program with its arguments, which gets one JSON object on its standard input; null for none."""

    webhook: Name | None
    """An https address to which the object is sent; null for none."""

    on: tuple[Kind, ...]
    """What to tell: a round without its quorum, a round that gave nothing, a failed run, a certificate that
    ends, a finished run."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ServerSettings:
    """How a coordinator's server runs."""

    version: Literal[1]
    """Version of this file's format."""

    federation: Name
    """Name of the federation, as its sites know it."""

    address: Name
    """Where sites connect, ``host:port``, as their bundles say it."""

    listen: Annotated[str, Field(pattern=r"^.+:[0-9]{1,5}$", json_schema_extra=_in_words("address:port"))]
    """Where the gate listens: ``0.0.0.0:9092`` for every IPv4 address of this machine, ``[::]:9092`` for
    all."""

    superlink_port: Port
    """Where Flower's SuperLink listens on 127.0.0.1. Nobody else may reach it: it asks for no login."""

    models: dict[Name, Name]
    """Where base models are on this machine, by what runs call them as ``model.name``; others are looked for
    under that name. The server reads a model's ``config.json`` alone, never its weights."""

    gate: GateLimits
    """Limits of the gate in front of it."""

    resubmissions: Annotated[int, Field(ge=0)]
    """How often a run whose process was killed is started again before it is given up."""

    notify: NotifySection
    """Whom to tell when something happens."""


SETTINGS: Final = TypedYaml(
    kind=ServerSettings,
    noun="the server's settings",
    fix="start from those that `fedtune server init` writes",
    code=660,
)


def load_settings(path: Path) -> ServerSettings:
    """Read ``server.yaml``.

    Raises:
        MachineError: FT660 for a file that cannot be used; otherwise every problem in it: FT661 an unknown
            key, FT662 a value that a key does not take, FT663 a key without a value.
    """
    settings = SETTINGS.load(path).value
    notify_settings(settings, where=str(path))
    return settings


def notify_settings(settings: ServerSettings, *, where: str = "server.yaml") -> NotifySettings:
    """Return whom to tell.

    Raises:
        FederationError: FT654, a command or an address that cannot be.
    """
    section = settings.notify
    raw = {"command": section.command and list(section.command), "webhook": section.webhook}
    return parse_notify(raw | {"on": list(section.on)}, where=where)


def written(*, federation: str, address: str, listen: str, superlink_port: int) -> str:
    """Return the text of a ``server.yaml`` with comments and the values that suit most."""
    return f"""\
# How this coordinator's server runs. Every key has to be there; read when `fedtune server start` starts.

version: 1

# Name of the federation, and where its sites connect: both stand in their bundles.
federation: {quoted(federation)}
address: {quoted(address)}

# Where the gate listens. It passes on what a site's Flower node asks and nothing else.
listen: {quoted(listen)}

# Where Flower's SuperLink listens, on 127.0.0.1 alone. It asks for no login: let no other account use this
# machine.
superlink_port: {superlink_port}

# Where base models are on this machine, if a run's model.name does not say it, such as
# lung-base: /srv/models/lung-base
models: {{}}

# What one site may ask of the gate.
gate:
  body_mib: 64
  requests_per_second: 200.0
  burst: 2000
  connections: 256

# How often a run whose process was killed is started again, from its last complete round.
resubmissions: 10

# command: [/usr/local/bin/page-me, --urgent]   gets one JSON object on standard input
# webhook: https://…                            gets the same by POST
notify:
  command: null
  webhook: null
  on: [quorum_lost, round_lost, failed, expiry, finished]
"""
