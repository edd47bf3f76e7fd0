"""What the executor uses of Flower's internals is where it was, and takes and gives what it did.

These are not Flower's public API. If one of these tests fails after an update of flwr, read what Flower's own
`flwr.supernode.runtime.run_clientapp` and `flwr.supercore.superexec.run_superexec` do now, change
`fedtune.site.executor` with them, and then this file.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from flwr.app import Message
from flwr.app.error import Error
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL, HEARTBEAT_PATIENCE, SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse, PullTaskInputResponse
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime import run_clientapp

import fedtune
from fedtune.site import executor

PACKAGE = Path(fedtune.__file__).parent

CALLS: dict[Callable[..., object], tuple[str, ...]] = {
    run_clientapp.pull_task_input: ("client",),
    run_clientapp.push_message: ("client", "message", "context"),
    run_clientapp.push_task_output: ("client", "context", "sub_status", "details"),
    RuntimeHttpClient.from_server_address: (
        "server_address",
        "insecure",
        "root_certificates",
        "interceptors",
        "retry_invoker",
    ),
    RuntimeHttpClient.AcquireTask: ("self", "request"),
    RuntimeHttpClient.SendTaskHeartbeat: ("self", "request"),
    RuntimeTokenHttpInterceptor.__init__: ("self", "token"),
    RuntimeVersionHttpInterceptor.__init__: ("self", "component_name"),
    SuperExecAuthHttpInterceptor.__init__: ("self", "master_secret", "protected_methods"),
    HeartbeatSender.__init__: ("self", "heartbeat_fn"),
    constant: ("interval",),
}


@pytest.mark.parametrize("function", CALLS, ids=lambda function: function.__qualname__)
def test_functions_take_what_they_took(function: Callable[..., object]) -> None:
    assert tuple(inspect.signature(function).parameters) == CALLS[function]


def test_retries_are_bounded_as_asked() -> None:
    known = inspect.signature(RetryInvoker).parameters
    assert {"wait_gen_factory", "recoverable_exceptions", "max_tries", "max_time"} <= set(known)


def test_a_task_comes_with_its_message_context_run_and_bundle() -> None:
    assert str(inspect.signature(run_clientapp.pull_task_input).return_annotation) == str(
        tuple[Message, executor.Context, run_clientapp.Run, Fab]
    )
    assert {"context", "run", "fab", "task_id"} <= set(PullTaskInputResponse.DESCRIPTOR.fields_by_name)
    assert set(Fab.__annotations__) == {"hash_str", "content", "verifications"}


def test_tasks_are_asked_for_by_type_and_come_with_a_token() -> None:
    assert TaskType.CLIENT_APP == "flwr-clientapp"
    assert "supported_task_types" in AcquireTaskRequest.DESCRIPTOR.fields_by_name
    assert {"task", "token"} <= set(AcquireTaskResponse.DESCRIPTOR.fields_by_name)
    assert SubStatus.COMPLETED == "completed"


def test_the_signed_call_is_the_one_that_flower_signs() -> None:
    superexec = import_module("flwr.supercore.superexec.run_superexec")
    assert {executor.ACQUIRE} == superexec._SUPEREXEC_AUTH_METHODS


def test_a_reply_takes_its_sender_from_the_identity_that_pulling_a_task_sets() -> None:
    assert {"task_id", "run_id", "node_id"} <= set(dir(type(TaskIdentity)))
    source = inspect.getsource(run_clientapp.pull_task_input)
    assert all(f"TaskIdentity.{name} = " in source for name in ("task_id", "run_id", "node_id"))


def test_a_task_without_heartbeats_fails_after_a_minute() -> None:
    assert HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL == 60


def test_the_supernode_leaves_tasks_to_us() -> None:
    flower_supernode = import_module("flwr.supernode.cli.flower_supernode")
    help_text = flower_supernode._parse_args_run_supernode().format_help()
    for option in (
        "--isolation",
        "--superexec-auth-secret-file",
        "--host",
        "--port",
        "--superlink",
        "--root-certificates",
        "--auth-supernode-private-key",
    ):
        assert option in help_text


def test_an_error_of_flower_has_a_reason() -> None:
    assert Error(code=0, reason="boom").reason == "boom"


def test_the_rest_of_a_message_can_be_waited_for_less_long() -> None:
    executor = import_module("fedtune.site.executor")
    run_clientapp = import_module("flwr.supernode.runtime.run_clientapp")
    pull = run_clientapp.pull_and_inflate_object_from_tree
    assert pull.keywords == {"max_time": executor.PULL_SECONDS}
    assert "max_time" in inspect.signature(pull.func).parameters


PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp"}
KNOWN = {
    "aggregation/robust.py",
    "coordinator/control.py",
    "coordinator/superlink_process.py",
    "federation/actors.py",
    "federation/bundle.py",
    "secagg/bench_peer.py",
    "simulation/grid.py",
    "site/executor.py",
    "site/supernode_process.py",
}
"""Modules that may know more of Flower than its public API."""


def test_flower_is_known_inside_out_in_few_places() -> None:
    insiders = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.split(".")[0] == "flwr" and name not in PUBLIC for name in names):
                insiders.add(path.relative_to(PACKAGE).as_posix())
    assert insiders == KNOWN
