"""A SuperLink's Control API without a SuperLink."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from fedtune.coordinator.control import FlowerRun, Node

__all__ = ["FakeControl", "refused"]


def refused(status: int, text: str = "") -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "https://127.0.0.1/v1/control/x")
    return httpx.HTTPStatusError(text, request=request, response=httpx.Response(status, text=text))


@dataclass
class FakeControl:
    """Remembers nodes and runs as a SuperLink does: a key that was unregistered is never taken again.

    Attributes:
        down: Whether nothing answers.
        refuses: What a start is answered with.
    """

    down: bool = False
    refuses: httpx.HTTPError | None = None
    runs: dict[int, FlowerRun] = field(default_factory=dict)
    known: dict[int, Node] = field(default_factory=dict)
    burnt: set[bytes] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    _numbers: Any = field(default_factory=lambda: itertools.count(100))

    def _called(self, name: str) -> None:
        if self.down:
            raise httpx.ConnectError("down")
        self.calls.append(name)

    def nodes(self) -> list[Node]:
        self._called("nodes")
        return list(self.known.values())

    def register(self, public_key: bytes) -> int:
        self._called("register")
        if public_key in self.burnt or any(node.public_key == public_key for node in self.known.values()):
            raise refused(409, "Public key already in use")
        number = next(self._numbers)
        self.known[number] = Node(node_id=number, public_key=public_key, online=False, last_activated="")
        return number

    def unregister(self, node_id: int) -> None:
        self._called("unregister")
        self.burnt.add(self.known.pop(node_id).public_key)

    def start_run(self, bundle: bytes, sha256: str, values: dict[str, str | int]) -> int:
        self._called("start")
        if self.refuses is not None:
            raise self.refuses
        number = next(self._numbers)
        self.runs[number] = FlowerRun(run_id=number, status="running", details="")
        self.values = values
        return number

    def run(self, run_id: int) -> FlowerRun | None:
        self._called("run")
        return self.runs.get(run_id)

    def stop_run(self, run_id: int) -> None:
        self._called("stop")
        self.end(run_id, "stopped")

    def stop_all(self) -> None:
        self._called("stop_all")
        for number in self.running:
            self.end(number, "stopped")

    def close(self) -> None:
        pass

    @property
    def running(self) -> list[int]:
        return [number for number, run in self.runs.items() if run.status != "finished"]

    def end(self, run_id: int, details: str) -> None:
        if run_id in self.running:
            self.runs[run_id] = replace(self.runs[run_id], status="finished", details=details)
