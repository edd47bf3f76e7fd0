"""A site's executor answers what its SuperNode hands it, whatever message, bundle or SuperNode do."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from support.supernode import SuperNode, serving

from fedtune.federation.processes import free_ports
from fedtune.federation.wire import Failure, parse
from fedtune.site.executor import Executor

SECRET = b"between the two of us"
BUNDLE = b"PK: some bytes that are no archive, and never looked into"
DIGEST = hashlib.sha256(BUNDLE).hexdigest()


def question(text: str = "how many?") -> RecordDict:
    return RecordDict({"ask": ConfigRecord({"text": text})})


def answered(reply: Message) -> str:
    return str(reply.content["ask"]["text"])


class App:
    """A ClientApp that counts, and does what a test asks of it."""

    def __init__(self) -> None:
        self.calls = 0
        self.bundles: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.app = ClientApp()

        @self.app.query("count")
        def count(message: Message, _: Context) -> Message:
            self.calls += 1
            self.meanwhile()
            return Message(question(f"{self.calls}"), reply_to=message)

    def answer(self, message: Message, context: Context, bundle: str) -> Message:
        self.bundles.append(bundle)
        return self.app(message, context)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def node() -> SuperNode:
    return SuperNode(BUNDLE, SECRET)


@pytest.fixture
def address(node: SuperNode) -> Iterator[str]:
    (port,) = free_ports(1)
    with serving(node, port) as address:
        yield address


def executor_of(app: App, address: str, *, secret: bytes = SECRET) -> Executor:
    return Executor(app.answer, runtime_address=address, auth_secret=secret)


@pytest.fixture
def executor(app: App, address: str) -> Iterator[Executor]:
    with closing(executor_of(app, address)) as executor:
        yield executor


def test_the_same_app_answers_every_message(app: App, node: SuperNode, executor: Executor) -> None:
    assert not executor.handle_one()
    for number in ("1", "2", "3"):
        task = node.deliver(question(), "query.count")
        assert executor.handle_one()
        (reply,) = node.replies()
        assert answered(reply) == number
        assert node.status(task) == ("finished", "completed")
    assert not executor.handle_one()


def test_who_answers_is_told_the_sha_256_of_the_bundles_bytes(
    app: App, node: SuperNode, executor: Executor
) -> None:
    node.deliver(question(), "query.count")
    assert executor.handle_one()
    assert app.bundles == [DIGEST]


def test_of_an_exception_only_the_type_leaves_the_site(
    app: App, node: SuperNode, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    def fails() -> None:
        raise ZeroDivisionError("a patient's name")

    app.meanwhile = fails
    node.deliver(question(), "query.count")
    assert executor.handle_one()
    (reply,) = node.replies()
    failure = parse(reply, Failure)
    assert (failure.code, failure.reason) == ("FT609", "unexpected ZeroDivisionError")
    app.meanwhile = lambda: None
    node.deliver(question(), "query.count")
    assert executor.handle_one()
    assert answered(node.replies()[0]) == "2"


def test_a_message_for_which_there_is_no_handler_is_answered(node: SuperNode, executor: Executor) -> None:
    node.deliver(question(), "query.another")
    assert executor.handle_one()
    assert parse(node.replies()[0], Failure).reason == "unexpected ValueError"


def test_a_message_that_does_not_parse_is_given_up_and_the_supernode_goes_on(
    app: App, node: SuperNode, executor: Executor
) -> None:
    task = node.deliver(question(), "query.count")
    node.damage()
    assert executor.handle_one()
    assert node.status(task)[0] == "running"
    assert node.replies() == []
    node.let_time_pass(61)
    (reply,) = node.replies()
    assert reply.error.reason == "ClientApp stopped responding."
    node.deliver(question(), "query.count")
    assert executor.handle_one()
    assert app.calls == 1


def test_a_task_that_was_cancelled_meanwhile_leaves_the_executor_well(
    app: App, node: SuperNode, executor: Executor
) -> None:
    task = node.deliver(question(), "query.count")
    app.meanwhile = lambda: node.cancel(task)
    assert executor.handle_one()
    assert node.replies() == []
    app.meanwhile = lambda: None
    node.deliver(question(), "query.count")
    assert executor.handle_one()
    assert answered(node.replies()[0]) == "2"


def test_who_does_not_know_the_secret_gets_no_task(app: App, node: SuperNode, address: str) -> None:
    task = node.deliver(question(), "query.count")
    with (
        closing(executor_of(app, address, secret=b"a guess")) as stranger,
        pytest.raises(httpx.HTTPStatusError, match="401"),
    ):
        stranger.handle_one()
    assert node.status(task)[0] == "pending"


@pytest.mark.parametrize("address", ["10.0.0.1:9094", "0.0.0.0:9094", "example.org:9094"])
def test_a_supernode_elsewhere_is_not_spoken_to_in_clear(app: App, address: str) -> None:
    with pytest.raises(ValueError, match=re.escape(address.partition(":")[0])):
        executor_of(app, address)


def test_an_empty_secret_is_refused(app: App) -> None:
    with pytest.raises(ValueError, match="auth_secret"):
        executor_of(app, "127.0.0.1:9094", secret=b"")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_run_outlives_the_supernode_and_stops_when_asked(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="fedtune.site.executor")

    def told(words: str) -> int:
        return sum(words in record.getMessage() for record in caplog.records)

    (port,) = free_ports(1)
    stop = threading.Event()
    with closing(executor_of(app, f"127.0.0.1:{port}")) as executor:
        thread = threading.Thread(target=executor.run, args=(stop,))
        thread.start()
        try:
            for number in (1, 2):
                until(lambda number=number: told("gives no task") == number)
                node = SuperNode(BUNDLE, SECRET)
                with serving(node, port):
                    task = node.deliver(question(), "query.count")
                    until(lambda node=node, task=task: node.status(task)[0] == "finished")
                    assert answered(node.replies()[0]) == str(number)
        finally:
            stop.set()
            thread.join(timeout=30)
        assert not thread.is_alive()
    assert told("gives tasks again") == 2
