"""What the coordinator asks of its own SuperLink: nodes and runs, over Flower's Control API on loopback.

All of the Control API that fedtune depends on is in this module; a contract test holds it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal

import httpx
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fab_pb2 import Fab
from flwr.proto.transport_pb2 import Scalar
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

__all__ = ["Control", "FlowerRun", "Node"]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A site's node, as the SuperLink knows it.

    Attributes:
        node_id: Flower's number of it.
        public_key: PEM that it was registered with.
        online: Whether its heartbeats arrive.
        last_activated: When it last connected, as ISO 8601; empty for never.
    """

    node_id: int
    public_key: bytes
    online: bool
    last_activated: str


@dataclass(frozen=True, kw_only=True)
class FlowerRun:
    """A run of Flower's: one session of one of ours.

    Attributes:
        run_id: Flower's number of it.
        status: Where it is.
        details: What Flower says of its end.
    """

    run_id: int
    status: Literal["pending", "starting", "running", "finished"]
    details: str


class Control:
    """A connection to the SuperLink.

    Args:
        port: Where it listens on 127.0.0.1.
        authority: The certificate by which it is known; None speaks without TLS.
    """

    def __init__(self, port: int, authority: Path | None) -> None:
        self._client = ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}",
            insecure=authority is None,
            root_certificates=None if authority is None else authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
        )

    def __enter__(self) -> Control:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def nodes(self) -> list[Node]:
        """Return the nodes that are registered.

        Raises:
            httpx.HTTPError: The SuperLink does not answer; so for all that follows.
        """
        return [
            Node(
                node_id=info.node_id,
                public_key=info.public_key,
                online=info.status == "online",
                last_activated=info.last_activated_at,
            )
            for info in self._client.ListNodes(ListNodesRequest()).nodes_info
            if info.status != "unregistered"
        ]

    def register(self, public_key: bytes) -> int:
        """Let a node in; returns Flower's number of it."""
        return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_key)).node_id)

    def unregister(self, node_id: int) -> None:
        """Let a node in no more."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, bundle: bytes, sha256: str, values: dict[str, str | int]) -> int:
        """Start a run; returns Flower's number of it.

        Args:
            bundle: Bytes of the bundle.
            sha256: Of it, in hex.
            values: Of the bundle's run config.
        """
        request = StartRunRequest(
            fab=Fab(hash_str=sha256, content=bundle),
            override_config={
                key: Scalar(string=value) if isinstance(value, str) else Scalar(sint64=value)
                for key, value in values.items()
            },
        )
        answer = self._client.StartRun(request)
        if not answer.HasField("run_id"):
            raise httpx.HTTPError("the SuperLink started no run and does not say why")
        return int(answer.run_id)

    def run(self, run_id: int) -> FlowerRun | None:
        """Return a run; None if the SuperLink does not know it."""
        try:
            runs = self._client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict
        except httpx.HTTPStatusError as error:
            if error.response.status_code in (400, 404):
                return None
            raise
        if run_id not in runs:
            return None
        status = runs[run_id].status
        return FlowerRun(run_id=run_id, status=status.status, details=status.details)

    def stop_run(self, run_id: int) -> None:
        """Stop a run that has not finished; one that has stays as it is."""
        try:
            self._client.StopRun(StopRunRequest(run_id=run_id))
        except httpx.HTTPStatusError as error:
            if error.response.status_code >= 500:
                raise

    def stop_all(self) -> None:
        """Stop every run: none outlives the SuperLink that ran it, but its database says otherwise."""
        for run_id, run in self._client.ListRuns(ListRunsRequest()).run_dict.items():
            if run.status.status != "finished":
                self.stop_run(run_id)
