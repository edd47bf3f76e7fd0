"""A Flower grid whose clients live in this process.

The ServerApp's messages are handed to the ClientApp one after another, in the order they were sent, so
that all virtual clients share one base model. What passes is what would travel: Flower messages whose
arrays are bytes.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from flwr.app import Context, Message, RecordDict
from flwr.app.error import Error
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["InProcessGrid"]

RUN_ID = 1
FIRST_NODE = 2
"""Node 0 and 1 mean "none" and "the server" to Flower."""


class InProcessGrid(Grid):
    """Virtual clients behind Flower's `Grid` interface.

    Args:
        app: The ClientApp that every node runs.
        clients: How many nodes there are; node k has Flower's usual ``partition-id`` k.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        self._app = app
        self._run = Run.create_empty(run_id=RUN_ID)
        self._clients = clients
        self._states: dict[int, RecordDict] = {}
        self._replies: dict[str, Message] = {}
        _become(SUPERLINK_NODE_ID)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run, under an identifier that means nothing outside this process."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return the virtual nodes."""
        return range(FIRST_NODE, FIRST_NODE + self._clients)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message; the constructor of `Message` does the same."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Let the clients answer, and keep their replies for `pull_messages`."""
        return [self._deliver(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, each once."""
        return [self._replies.pop(name) for name in message_ids if name in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Yield each reply as soon as its client has answered.

        A client that has not begun when the timeout is over is not asked any more, and a reply that comes
        after it is dropped: as over a network, the server then sees no reply.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        for message in messages:
            if deadline is not None and time.monotonic() >= deadline:
                return
            (reply,) = self.pull_messages([self._deliver(message)])
            if deadline is None or time.monotonic() < deadline:
                yield reply

    def _deliver(self, message: Message) -> str:
        name = uuid.uuid4().hex
        message.metadata.__dict__["_message_id"] = name
        node = message.metadata.dst_node_id
        with _identity(node):
            context = self._context(node)
            try:
                reply = self._app(message, context)
            except Exception as error:
                # The fedtune client answers with a Failure of its own; this is a ClientApp that did not.
                reason = f"{type(error).__name__}: {error}"
                failed = Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason)
                reply = Message(failed, reply_to=message)
        if len(context.state):
            self._states[node] = context.state
        reply.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        self._replies[name] = reply
        return name

    def _context(self, node: int) -> Context:
        """Return a node's context; only what its app keeps in the state is held between messages."""
        return Context(
            run_id=RUN_ID,
            node_id=node,
            node_config={"partition-id": node - FIRST_NODE, "num-partitions": self._clients},
            state=self._states.get(node, RecordDict()),
            run_config={},
        )


def _become(node: int) -> None:
    """Say who this process is now: Flower's Message constructor takes its sender from there."""
    TaskIdentity.task_id = RUN_ID
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = node


@contextmanager
def _identity(node: int) -> Iterator[None]:
    _become(node)
    try:
        yield
    finally:
        _become(SUPERLINK_NODE_ID)
