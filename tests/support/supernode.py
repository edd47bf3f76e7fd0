"""Flower's SuperNode without a SuperLink: its Runtime API on loopback, over a state that tests fill."""

from __future__ import annotations

import hashlib
import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import uvicorn
from flwr.app import Context, Message, RecordDict
from flwr.app.message.message import make_message
from flwr.app.metadata import Metadata
from flwr.supercore.constant import TaskType
from flwr.supercore.date import now
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

RUN_ID, NODE_ID, SERVER_ID = 7, 42, 1
_numbers = itertools.count()


class SuperNode:
    """What a SuperNode knows; a new one knows nothing of an old one's tasks.

    Args:
        bundle: Bytes of the bundle that messages come with.
        secret: What an executor has to know.
    """

    def __init__(self, bundle: bytes, secret: bytes) -> None:
        objects = ObjectStoreFactory()
        self.factory = NodeStateFactory(objectstore_factory=objects)
        self.secret = secret
        self._state, self._objects = self.factory.state(), objects.store()
        self._state.set_node_id(NODE_ID)
        run = Run.create_empty(run_id=RUN_ID)
        run.fab_hash = hashlib.sha256(bundle).hexdigest()
        self._state.store_run(run)
        self._state.store_fab(Fab(hash_str=run.fab_hash, content=bundle, verifications={}))
        context = Context(
            run_id=RUN_ID, node_id=NODE_ID, node_config={}, state=RecordDict(), run_config={}, series_id=0
        )
        self._state.set_run_series_context(0, context)
        self._fab_hash = run.fab_hash

    def deliver(self, content: RecordDict, message_type: str) -> int:
        """Let a message from the server arrive; returns the number of its task."""
        task = self._state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN_ID, fab_hash=self._fab_hash)
        assert task is not None
        metadata = Metadata(
            run_id=RUN_ID,
            message_id="",
            src_node_id=SERVER_ID,
            dst_node_id=NODE_ID,
            reply_to_message_id="",
            group_id=str(next(_numbers)),
            created_at=now().timestamp(),
            ttl=3600.0,
            message_type=message_type,
        )
        _insert_message(make_message(metadata, content), self._state, self._objects)
        return task

    def damage(self) -> None:
        """Spoil all objects of the messages that wait, as a server with another idea of them would."""
        for entry in self._objects.store.values():
            entry.content = b"no such thing"

    def replies(self) -> list[Message]:
        """Return the replies that came since the last call, as the SuperNode would send them."""
        return [self._inflated(reply) for reply in self._state.get_messages_legacy(is_reply=True)]

    def status(self, task: int) -> tuple[str, str]:
        """Return how a task stands: its status, and how it ended."""
        (found,) = self._state.get_tasks(task_ids=[task])
        return found.status.status, found.status.sub_status

    def cancel(self, task: int) -> None:
        """End a task under its executor's hands."""
        self._state.finish_task(task, sub_status="stopped", details="")

    def let_time_pass(self, seconds: float) -> None:
        """Age every claim, as if no heartbeat had come for so long."""
        for record in self._state.task_token_store.values():
            record.active_until -= timedelta(seconds=seconds)

    def _inflated(self, reply: Message) -> Message:
        objects = {object_id: entry.content for object_id, entry in self._objects.store.items()}
        inflated = inflate_object_from_contents(reply.metadata.message_id, objects)
        assert isinstance(inflated, Message)
        return inflated


@contextmanager
def serving(node: SuperNode, port: int) -> Iterator[str]:
    """Serve a SuperNode's Runtime API; yields its address."""
    app = create_app(node.factory, superexec_auth_secret=node.secret)
    config = uvicorn.Config(app, host="127.0.0.1", port=port, access_log=False, log_level="error", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive(), "the Runtime API did not start"
        assert time.monotonic() < deadline, "the Runtime API did not start in time"
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
