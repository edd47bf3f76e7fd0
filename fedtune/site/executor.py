"""A site's executor: takes each task of its SuperNode and answers it with the installed fedtune.

Flower's SuperNode hands tasks to whoever holds its secret (``--isolation process`` with
``--superexec-auth-secret-file``). Flower's own executor starts a process for each task, which unpacks the
bundle that the coordinator uploaded and imports it. This one is a single process that lives as long as the
site: the base model is loaded once, secrets live from message to message, and of the bundle only the
SHA-256 is looked at.

All of Flower that is internal and that a site depends on is in this module; a contract test holds it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime import run_clientapp
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedtune.federation.wire import Failure, content

__all__ = ["Executor"]

logger = logging.getLogger(__name__)

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
POLL_SECONDS = 0.2
RETRY_WAIT_SECONDS, RETRY_TRIES = 0.5, 6
PULL_SECONDS = 900.0
"""How long the rest of a message may take to arrive. Flower waits for two hours, and a run that ended
meanwhile would keep the site from every other one."""

_PULL = "pull_and_inflate_object_from_tree"
vars(run_clientapp)[_PULL] = partial(vars(run_clientapp)[_PULL], max_time=PULL_SECONDS)
"""What `pull_task_input` calls."""


class Executor:
    """Answers one SuperNode's messages in this process, one message at a time.

    Guarantees:
        * Nothing of a bundle is run, imported, unpacked or written to disk: its bytes are hashed.
        * A message that could be read is answered: by ``answer``, or, where that raises, with a `Failure`
          that the coordinator records as FT609 with the exception's type; no other word of it leaves.
        * While a message is handled the SuperNode hears that its executor lives, however long it takes.
        * Neither a failed task nor a SuperNode that is away or starts anew ends `run`.

    A message that could not be read, for instance because its objects do not parse, is given up: without
    heartbeats the SuperNode reports it as crashed a minute later and goes on. Were the task ended at once,
    Flower's SuperNode would wait for its reply for ever.

    Args:
        answer: Answers a message: told of the message, of Flower's context, and of the SHA-256 of the
            bundle's bytes, in hex.
        runtime_address: ``host:port`` of the SuperNode's Runtime API. It is spoken to in clear, so the host
            must be a loopback address.
        auth_secret: Bytes of the file that the SuperNode got as ``--superexec-auth-secret-file``.

    Raises:
        ValueError: The address is not on loopback, or the secret is empty.
    """

    def __init__(
        self,
        answer: Callable[[Message, Context, str], Message],
        *,
        runtime_address: str,
        auth_secret: bytes,
    ) -> None:
        if not ipaddress.ip_address(runtime_address.rpartition(":")[0].strip("[]")).is_loopback:
            raise ValueError(f"runtime_address must be on loopback, got {runtime_address!r}")
        if not auth_secret:
            raise ValueError("auth_secret must not be empty")
        self._answer = answer
        self._address = runtime_address
        signed = SuperExecAuthHttpInterceptor(master_secret=auth_secret, protected_methods=[ACQUIRE])
        self._claims = _client(runtime_address, signed, tries=1)

    def close(self) -> None:
        """Close the connection to the SuperNode."""
        self._claims.close()

    def run(self, stop: threading.Event) -> None:
        """Handle tasks until ``stop`` is set; a message that is being handled is finished first.

        Raises:
            SystemExit: By Flower itself, where the SuperNode runs another version of it.
        """
        away = False
        while not stop.is_set():
            try:
                busy = self.handle_one()
            except httpx.HTTPError as error:
                if not away:
                    logger.warning(
                        "the SuperNode at %s gives no task, still asking: %s", self._address, error
                    )
                away, busy = True, False
            else:
                if away:
                    logger.info("the SuperNode at %s gives tasks again", self._address)
                away = False
            if not busy:
                stop.wait(POLL_SECONDS)

    def handle_one(self) -> bool:
        """Take one task if there is any, and answer its message.

        Returns:
            Whether there was a task, answered or given up.

        Raises:
            httpx.HTTPError: The SuperNode could not be asked for a task, or it refused.
        """
        request = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        claimed = self._claims.AcquireTask(request)
        if not claimed.HasField("task"):
            return False
        token = RuntimeTokenHttpInterceptor(claimed.token)
        with _client(self._address, token, tries=RETRY_TRIES) as client, _heartbeats(client):
            try:
                self._serve(client)
            except Exception as error:
                # Cancelled, or the SuperNode went away with all that it knew of the task.
                logger.warning("gave up a task: %s", type(error).__name__, exc_info=error)
        return True

    def _serve(self, client: RuntimeHttpClient) -> None:
        message, context, _, bundle = pull_task_input(client)
        digest = hashlib.sha256(bundle.content).hexdigest()
        del bundle
        push_message(client, self._answered(message, context, digest), context)
        push_task_output(client, context, SubStatus.COMPLETED, "")

    def _answered(self, message: Message, context: Context, digest: str) -> Message:
        try:
            return self._answer(message, context, digest)
        except Exception as error:
            logger.exception("a message of type %s could not be answered", message.metadata.message_type)
            failure = Failure(site="?", code="FT609", reason=f"unexpected {type(error).__name__}")
        return Message(content(failure), reply_to=message)


def _client(address: str, identity: ProtobufClientInterceptor, *, tries: int) -> RuntimeHttpClient:
    """Return a client that tries again where nobody listens.

    Flower's own retries last for ever, and at a token that is no longer valid they interrupt the process.
    """
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-clientapp"), identity],
        retry_invoker=RetryInvoker(
            wait_gen_factory=lambda: constant(RETRY_WAIT_SECONDS),
            recoverable_exceptions=httpx.TransportError,
            max_tries=tries,
            max_time=None,
        ),
    )


@contextmanager
def _heartbeats(client: RuntimeHttpClient) -> Iterator[None]:
    """Keep a task alive in the background. Flower's own function ends the process when the task is gone."""

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPError as error:
            logger.info("the SuperNode did not take a heartbeat: %s", error)
        return True

    sender = HeartbeatSender(beat)
    sender.start()
    try:
        yield
    finally:
        sender.stop()
