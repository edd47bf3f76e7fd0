"""A grid without a network or a model: each node does what a script says, and time passes only as it says."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.app.error import Error
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedtune.federation.wire import Failure, HelloReply, content

__all__ = ["Behaviour", "Clock", "ScriptedGrid", "ScriptedNode", "hello"]

Behaviour = Literal[
    "well", "idle", "pending", "paused", "refuses", "silent", "crashes", "nonsense", "other_base", "liar"
]
FAILURES = {"pending": "FT642", "paused": "FT641", "refuses": "FT646"}
SERVER = 1


@dataclass
class Clock:
    """Seconds that pass when somebody waits."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class ScriptedNode:
    """A site's node.

    Attributes:
        name: The site's.
        behaviour: What it answers.
        online: Whether it is connected.
    """

    name: str
    behaviour: Behaviour = "well"
    online: bool = True


def hello(site: str, *, base: str = "0" * 64, trains: bool = True) -> HelloReply:
    return HelloReply(
        protocol=1,
        version="0",
        site=site,
        trains=trains,
        train_examples=4,
        held_out_examples=1,
        skipped_rows=0,
        base_name="tiny",
        base_hash=base,
        parameters=10,
        adapter_parameters=16,
        quantization="none",
        compute_dtype="float32",
        load_seconds=0.0,
    )


@dataclass
class ScriptedGrid(Grid):
    """Answers greetings as the nodes' behaviours say.

    Attributes:
        clock: Passes by the timeout where somebody does not answer.
        nodes: By Flower's number.
        asked: Nodes, in the order in which they were asked.
    """

    clock: Clock = field(default_factory=Clock)
    nodes: dict[int, ScriptedNode] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        _become(SERVER)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        return Run.create_empty(run_id=1)

    def create_message(self, *_: object, **__: object) -> Message:  # type: ignore[override]
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return [number for number, node in self.nodes.items() if node.online]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        assert timeout is not None, "nobody is waited for for ever"
        silent = False
        for message in messages:
            number = message.metadata.dst_node_id
            self.asked.append(number)
            answer = self._answer(self.nodes[number])
            silent = silent or answer is None
            if answer is not None:
                message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
                _become(number)
                reply = Message(answer, reply_to=message)
                _become(SERVER)
                yield reply
                yield reply  # a network may deliver twice
        self.clock.now += timeout if silent else 3.0

    def _answer(self, node: ScriptedNode) -> RecordDict | Error | None:
        if not node.online or node.behaviour == "silent":
            return None
        match node.behaviour:
            case "crashes":
                return Error(code=1, reason="boom")
            case "nonsense":
                return RecordDict()
            case "other_base":
                return content(hello(node.name, base="f" * 64))
            case "liar":
                return content(hello("somebody-else"))
            case "idle":
                return content(hello(node.name, trains=False))
            case "well":
                return content(hello(node.name))
        return content(Failure(site=node.name, code=FAILURES[node.behaviour], reason="as it says"))


def _become(node: int) -> None:
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = 1
    TaskIdentity.node_id = node
