"""Node keys: what the coordinator enrolled and what its SuperLink lets in are kept the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fedtune.coordinator.control import Control, Node
from fedtune.errors import FedtuneError, Problem, RunError
from fedtune.keys.enrolment import read_node_public
from fedtune.keys.private import UNREADABLE, public_from_point
from fedtune.observability.disk import write_atomic

__all__ = ["Enrolled", "NodeKeys", "enrolled_keys", "read_names", "synchronise"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Enrolled:
    """A site that is enrolled, with its node.

    Attributes:
        site: Its name.
        node: What the SuperLink knows of it.
    """

    site: str
    node: Node


@dataclass(frozen=True, kw_only=True)
class NodeKeys:
    """What ``nodes/`` holds.

    Attributes:
        by_site: Node key of each site, as PEM, by name.
        damaged: Why a file is no node key, by site. Its node is left as it is: Flower never takes back a key
            that was unregistered once.
    """

    by_site: Mapping[str, bytes]
    damaged: Mapping[str, str]


def enrolled_keys(folder: Path) -> NodeKeys:
    """Read the node key of each site.

    Args:
        folder: ``nodes`` of the coordinator's folder.
    """
    keys, damaged = {}, {}
    for path in sorted(folder.glob("*.pub")):
        try:
            public = public_from_point(read_node_public(path))
        except FedtuneError as error:
            damaged[path.stem] = str(error)
            continue
        keys[path.stem] = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return NodeKeys(by_site=keys, damaged=damaged)


def synchronise(control: Control, keys: NodeKeys, names_file: Path) -> list[Enrolled]:
    """Register what is enrolled, unregister what is not, and write down which node is whose.

    Args:
        control: Way to the SuperLink.
        keys: From `enrolled_keys`.
        names_file: JSON of node number to site, for the ServerApp.

    Raises:
        httpx.HTTPError: The SuperLink does not answer.
        RunError: FT705 or FT707, the file cannot be written.
    """
    wanted = {_canonical(key): site for site, key in keys.by_site.items()}
    before = _names_before(names_file)
    known = {_canonical(node.public_key): node for node in control.nodes()}
    for key, node in known.items():
        if key not in wanted and before.get(node.node_id) in keys.damaged:
            wanted[key] = before[node.node_id]
        elif key not in wanted:
            control.unregister(node.node_id)
            logger.info("node %d is no longer enrolled, and is refused from now on", node.node_id)
    missing = {key: site for key, site in wanted.items() if key not in known}
    for site in missing.values():
        _register(control, site, keys.by_site[site])
    if missing:
        known = {_canonical(node.public_key): node for node in control.nodes()}
    ours = {site: known[key] for key, site in wanted.items() if key in known}
    found = [Enrolled(site=site, node=ours[site]) for site in sorted(ours)]
    names = json.dumps({str(each.node.node_id): each.site for each in found}).encode()
    if not names_file.exists() or names_file.read_bytes() != names:
        write_atomic(names_file, names)
    return found


def read_names(names_file: Path) -> dict[int, str]:
    """Return which node is whose; empty before the server has written it.

    Raises:
        RunError: FT666, the file is damaged.
    """
    try:
        return {int(node): str(site) for node, site in json.loads(names_file.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise RunError(
            Problem(
                code="FT666",
                what="the record of which node is whose is damaged",
                where=str(names_file),
                fix="delete it; a running server writes it anew within seconds",
            )
        ) from None


def _names_before(names_file: Path) -> dict[int, str]:
    try:
        return read_names(names_file)
    except RunError as error:
        logger.warning("%s", error)
        return {}


def _register(control: Control, site: str, key: bytes) -> None:
    try:
        logger.info("%s: node %d is enrolled", site, control.register(key))
    except httpx.HTTPStatusError as error:
        if error.response.status_code >= 500:
            raise
        logger.error(  # noqa: TRY400  # its words say it all
            "%s: the SuperLink does not take its node key, perhaps because it was removed before: give the "
            "site a new one",
            site,
        )


def _canonical(pem: bytes) -> bytes:
    """Return a key in one form, whatever the line breaks of its PEM; what is no key stays as it is."""
    try:
        public = load_pem_public_key(pem)
    except UNREADABLE:
        return pem
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
