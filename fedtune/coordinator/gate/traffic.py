"""How many bytes each node sent and got, and when it was last seen; and the file that keeps it.

A node is known by the fingerprint of its key, the same that `fedtune keys show` prints. Only requests that
the SuperLink answered with success count for a node: by then it has checked that the node holds the key.
"""

from __future__ import annotations

import json
import threading
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from fedtune.coordinator.problems import refusal
from fedtune.keys.certificates import utc_now
from fedtune.keys.private import UNREADABLE, public_hash
from fedtune.observability.disk import write_atomic
from fedtune.secagg.entry import fingerprint
from fedtune.secagg.fields import MAX_FILE_BYTES, exactly, integer, parse_json, string

__all__ = ["NodeTraffic", "Traffic", "TrafficMeter", "node_fingerprint", "read_traffic", "write_traffic"]

_FORMAT: Final = "fedtune-gate-traffic/1"
_MAX_KEY_HEADER: Final = 1024
_MAX_NODES: Final = 4096
_COUNTS: Final = ("requests", "bytes_in", "bytes_out")


@lru_cache(maxsize=_MAX_NODES)
def node_fingerprint(header: bytes) -> str | None:
    """The fingerprint of the node key in a ``flwr-public-key`` header; None if no key on P-384 is in it.

    Args:
        header: Base64 of the public key in PEM, as Flower's SuperNode sends it. Anybody can send anybody's.
    """
    if len(header) > _MAX_KEY_HEADER:
        return None
    try:
        key = load_pem_public_key(b64decode(header, validate=True))
    except UNREADABLE:
        return None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        return None
    return fingerprint(public_hash(key))


@dataclass(frozen=True, kw_only=True)
class NodeTraffic:
    """What one node sent and got.

    Attributes:
        requests: Requests that were answered with success.
        bytes_in: Bytes of their bodies.
        bytes_out: Bytes of the answers' bodies.
        last_seen: When the last of them ended.
    """

    requests: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    last_seen: datetime

    def plus(self, *, bytes_in: int, bytes_out: int, at: datetime) -> NodeTraffic:
        return replace(
            self,
            requests=self.requests + 1,
            bytes_in=self.bytes_in + bytes_in,
            bytes_out=self.bytes_out + bytes_out,
            last_seen=at,
        )


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """All nodes' traffic at one moment.

    Attributes:
        since: When counting began.
        nodes: By fingerprint of the node's key.
    """

    since: datetime
    nodes: Mapping[str, NodeTraffic]

    def to_json(self) -> str:
        nodes = {
            node: asdict(each) | {"last_seen": each.last_seen.isoformat()}
            for node, each in sorted(self.nodes.items())
        }
        return (
            json.dumps({"format": _FORMAT, "since": self.since.isoformat(), "nodes": nodes}, indent=1) + "\n"
        )


class TrafficMeter:
    """Counts, and can be read from any thread.

    Args:
        before: Where an earlier gate stopped counting.
    """

    def __init__(self, before: Traffic | None = None) -> None:
        self._since = before.since if before else utc_now()
        self._nodes = dict(before.nodes) if before else {}
        self._lock = threading.Lock()

    def count(self, node: str, *, bytes_in: int, bytes_out: int) -> None:
        """Count a request of a node that the SuperLink believed.

        Beyond 4,096 nodes, new ones are not counted.
        """
        now = utc_now()
        with self._lock:
            if node in self._nodes or len(self._nodes) < _MAX_NODES:
                known = self._nodes.get(node, NodeTraffic(last_seen=now))
                self._nodes[node] = known.plus(bytes_in=bytes_in, bytes_out=bytes_out, at=now)

    def snapshot(self) -> Traffic:
        with self._lock:
            return Traffic(since=self._since, nodes=dict(self._nodes))


def write_traffic(path: Path, traffic: Traffic) -> None:
    """Write a snapshot; a reader sees this one or the one before.

    Raises:
        RunError: FT705 or FT707.
    """
    write_atomic(path, traffic.to_json().encode(), kept="the figures before", again="nothing: it is repeated")


def read_traffic(path: Path) -> Traffic | None:
    """The newest snapshot in a file; None if there is none.

    Raises:
        FederationError: FT653, it cannot be read or is no such file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal("FT653", f"the gate's traffic: {error.strerror}", where=str(path)) from None
    try:
        return _parse(parse_json(data))
    except (ValueError, TypeError) as error:
        raise refusal("FT653", f"not the gate's traffic: {error!s:.200}", where=str(path)) from None


def _parse(raw: Any) -> Traffic:
    exactly(raw, "format", "since", "nodes", form=_FORMAT)
    if not isinstance(raw["nodes"], dict):
        raise TypeError("the nodes are not an object")
    return Traffic(
        since=_moment(raw["since"]), nodes={node: _node(each) for node, each in raw["nodes"].items()}
    )


def _node(raw: Any) -> NodeTraffic:
    exactly(raw, *_COUNTS, "last_seen")
    counts = {name: integer(raw[name]) for name in _COUNTS}
    return NodeTraffic(**counts, last_seen=_moment(raw["last_seen"]))


def _moment(raw: Any) -> datetime:
    moment = datetime.fromisoformat(string(raw))
    if moment.tzinfo is None:
        raise ValueError(f"{raw!r} has no time zone")
    return moment
