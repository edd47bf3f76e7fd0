"""The ``notify`` section of a coordinator's settings: whom to tell, and of what.

.. code-block:: yaml

    notify:
      command: [/usr/local/bin/page-me, --team, federations]  # or null
      webhook: https://chat.example.org/hooks/7f3a  # or null
      on: [quorum_lost, round_lost, failed, expiry, finished]
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import urlsplit

from fedtune.config.keys import similar
from fedtune.errors import FederationError, Problem

__all__ = ["KINDS", "Kind", "NotifySettings", "host_of", "parse_notify"]

Kind: TypeAlias = Literal["quorum_lost", "round_lost", "failed", "expiry", "finished"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_KEYS: Final = ("command", "webhook", "on")


@dataclass(frozen=True, kw_only=True)
class NotifySettings:
    """Whom to tell, and of what.

    Attributes:
        command: A program and its arguments, started without a shell.
        webhook: Where a notice is posted: https, or http on loopback.
        on: The kinds of notices that are given.
    """

    command: tuple[str, ...] | None = None
    webhook: str | None = None
    on: tuple[Kind, ...] = KINDS


def parse_notify(raw: object, *, where: str) -> NotifySettings:
    """Read the section as YAML or JSON gives it; a key that is left out keeps its default.

    Args:
        raw: None where there is no such section.
        where: The file, for an error.

    Raises:
        FederationError: FT654 for each thing that is wrong.
    """
    if raw is None:
        return NotifySettings()
    if not isinstance(raw, dict):
        raise FederationError(_problem(f"notify is {_shown(raw)}, not a mapping", f"{where}, key notify"))
    raw = {"on" if key is True else key: value for key, value in raw.items()}  # YAML 1.1 reads `on` as true
    problems = [*_unknown_keys(raw, where)]
    for key, flaws in (("command", _command_flaws), ("webhook", _webhook_flaws), ("on", _kinds_flaws)):
        if key in raw:
            problems += [_problem(flaw, f"{where}, key notify.{key}") for flaw in flaws(raw[key])]
    if problems:
        raise FederationError(problems)
    command, kinds = raw.get("command"), raw.get("on", KINDS)
    return NotifySettings(
        command=None if command is None else tuple(command),
        webhook=raw.get("webhook"),
        on=tuple(kind for kind in KINDS if kind in kinds),
    )


def host_of(url: str) -> str:
    """What may be told of a webhook: its path is often a secret."""
    return urlsplit(url).hostname or "?"


def _problem(what: str, where: str, fix: str | None = None) -> Problem:
    return Problem(
        code="FT654",
        what=what,
        where=where,
        fix=fix or "correct the value: docs/reference/notify.md says what each key takes",
    )


def _shown(raw: object) -> str:
    return f"{raw!a:.80}"


def _unknown_keys(raw: dict[Any, Any], where: str) -> Iterator[Problem]:
    for key in raw:
        if key not in _KEYS:
            meant = similar(str(key), _KEYS)
            fix = f"did you mean {meant}?" if meant else f"the keys are {', '.join(_KEYS)}"
            yield _problem(f"notify has no key {_shown(key)}", f"{where}, key notify", fix)


def _command_flaws(raw: object) -> Iterator[str]:
    if raw is None:
        return
    texts = isinstance(raw, list) and all(isinstance(part, str) and "\0" not in part for part in raw)
    if not isinstance(raw, list) or not texts or not raw or not raw[0]:
        yield f"command is {_shown(raw)}, not null or a list of a program and its arguments"


def _webhook_flaws(raw: object) -> Iterator[str]:
    if raw is None:
        return
    if not isinstance(raw, str) or not raw.isascii() or not raw.isprintable() or " " in raw:
        yield "webhook is not null or an address of printable ASCII"
        return
    try:
        parts = urlsplit(raw)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        yield f"webhook is not an address that can be read: {error!s:.80}"
        return
    if parts.scheme not in ("https", "http") or not host:
        yield f"webhook begins with {parts.scheme!a:.20}, not with https:// and a host"
    elif parts.scheme == "http" and not _is_loopback(host):
        yield f"webhook goes to {host} in clear: http is for this machine alone, use https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _kinds_flaws(raw: object) -> Iterator[str]:
    if not isinstance(raw, list):
        yield f"on is {_shown(raw)}, not a list of {', '.join(KINDS)}"
        return
    for each in raw:
        if each not in KINDS:
            meant = similar(each, KINDS) if isinstance(each, str) else None
            yield f"on holds {_shown(each)}: " + (f"did you mean {meant}?" if meant else ", ".join(KINDS))
