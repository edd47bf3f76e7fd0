"""Node keys: what the coordinator enrolled and what its SuperLink lets in are kept the same."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from fedtune.coordinator.control import Control, Node
from fedtune.errors import FedtuneError
from fedtune.keys.enrolment import read_node_public
from fedtune.keys.private import public_from_point
from fedtune.observability.disk import write_atomic

__all__ = ["Enrolled", "enrolled_keys", "read_names", "synchronise"]

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


def enrolled_keys(folder: Path) -> dict[str, bytes]:
    """Return the node key of each site, as PEM, by name; a file that is none is logged and left out.

    Args:
        folder: ``nodes`` of the coordinator's folder.
    """
    keys = {}
    for path in sorted(folder.glob("*.pub")):
        try:
            public = public_from_point(read_node_public(path))
        except FedtuneError as error:
            logger.warning("a node key is left out: %s", error)
            continue
        keys[path.stem] = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return keys


def synchronise(control: Control, keys: Mapping[str, bytes], names_file: Path) -> list[Enrolled]:
    """Register what is enrolled, unregister what is not, and write down which node is whose.

    Args:
        control: Way to the SuperLink.
        keys: Node keys by site, from `enrolled_keys`.
        names_file: JSON of node number to site, for the ServerApp.

    Raises:
        httpx.HTTPError: The SuperLink does not answer.
    """
    wanted = {_canonical(key): site for site, key in keys.items()}
    known = {_canonical(node.public_key): node for node in control.nodes()}
    for key, node in known.items():
        if key not in wanted:
            control.unregister(node.node_id)
            logger.info("node %d is no longer enrolled, and is refused from now on", node.node_id)
    missing = [site for key, site in wanted.items() if key not in known]
    for site in missing:
        logger.info("%s: node %d is enrolled", site, control.register(keys[site]))
    if missing:
        known = {_canonical(node.public_key): node for node in control.nodes()}
    found = [Enrolled(site=site, node=known[key]) for key, site in sorted(wanted.items(), key=lambda x: x[1])]
    names = json.dumps({str(each.node.node_id): each.site for each in found}).encode()
    if not names_file.exists() or names_file.read_bytes() != names:
        write_atomic(names_file, names)
    return found


def read_names(names_file: Path) -> dict[int, str]:
    """Return which node is whose; empty before the server has written it."""
    try:
        return {int(node): str(site) for node, site in json.loads(names_file.read_bytes()).items()}
    except FileNotFoundError:
        return {}


def _canonical(pem: bytes) -> bytes:
    return load_pem_public_key(pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
