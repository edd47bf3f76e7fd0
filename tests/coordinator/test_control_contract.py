"""What `fedtune.coordinator.control` uses of Flower's Control API is where it was, and means what it did.

If one of these tests fails after an update of flwr, read what Flower's own `flwr.cli` does now, change
`fedtune.coordinator.control` with it, and then this file.
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

import httpx
import pytest
from flwr.common.constant import Status
from flwr.proto import control_pb2
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import NodeInfo
from flwr.proto.run_pb2 import Run, RunStatus
from flwr.proto.transport_pb2 import Scalar
from flwr.server.superlink.linkstate import sql_linkstate
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.error.catalog import API_ERROR_MAP, ApiErrorCode
from flwr.superlink.runtime import run_serverapp

from fedtune.coordinator import control, superlink
from fedtune.coordinator.control import Control, FlowerRun
from fedtune.coordinator.submission import _NAMED

FIELDS = {
    control_pb2.ListNodesRequest: set(),
    control_pb2.ListNodesResponse: {"nodes_info"},
    control_pb2.RegisterNodeRequest: {"public_key"},
    control_pb2.RegisterNodeResponse: {"node_id"},
    control_pb2.UnregisterNodeRequest: {"node_id"},
    control_pb2.StartRunRequest: {"fab", "override_config"},
    control_pb2.StartRunResponse: {"run_id"},
    control_pb2.ListRunsRequest: {"run_id"},
    control_pb2.ListRunsResponse: {"run_dict"},
    control_pb2.StopRunRequest: {"run_id"},
    NodeInfo: {"node_id", "public_key", "status", "last_activated_at"},
    Run: {"status"},
    RunStatus: {"status", "details"},
    Fab: {"hash_str", "content"},
    Scalar: {"string", "sint64"},
}


@pytest.mark.parametrize("message", FIELDS, ids=lambda message: message.DESCRIPTOR.name)
def test_messages_have_the_fields_that_are_used(message: type) -> None:
    assert set(message.DESCRIPTOR.fields_by_name) >= FIELDS[message]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["ListNodes", "RegisterNode", "UnregisterNode", "StartRun", "ListRuns", "StopRun"]
)
def test_the_client_has_the_calls_that_are_used(name: str) -> None:
    assert f"self._client.{name}(" in inspect.getsource(control)
    assert next(iter(list(inspect.signature(getattr(ControlHttpClient, name)).parameters)[1:])) == "request"


def test_the_client_is_made_with_a_certificate_of_ours() -> None:
    taken = inspect.signature(ControlHttpClient.from_server_address).parameters
    assert {"server_address", "insecure", "root_certificates", "interceptors"} <= set(taken)


def test_a_run_has_the_states_that_are_known() -> None:
    known = set(get_args(get_type_hints(FlowerRun)["status"]))
    assert known == {Status.PENDING, Status.STARTING, Status.RUNNING, Status.FINISHED}


def test_a_node_has_the_states_that_are_known() -> None:
    assert (NodeStatus.ONLINE, NodeStatus.UNREGISTERED) == ("online", "unregistered")


def test_a_key_that_was_unregistered_is_refused_for_ever_with_an_answer_of_the_clients_fault() -> None:
    """Why the node of a damaged file is left as it was."""
    assert "Public key already in use" in inspect.getsource(sql_linkstate)
    spec = API_ERROR_MAP[ApiErrorCode.PUBLIC_KEY_ALREADY_IN_USE]
    assert 400 <= int(spec.http_status_code if hasattr(spec, "http_status_code") else spec.status_code) < 500


def test_the_words_of_an_error_of_a_session_reach_the_details_of_its_run() -> None:
    assert 'details = f"ServerApp failed with exception: {str(ex)}"' in inspect.getsource(run_serverapp)
    assert _NAMED.search("ServerApp failed with exception: FT711: so\n  where: x")
    assert not _NAMED.search("ServerApp failed with exception: 'NoneType' object")


def test_the_superlink_takes_the_options_that_it_is_started_with() -> None:
    flower_superlink = import_module("flwr.superlink.cli.flower_superlink")
    known = flower_superlink._parse_args_run_superlink().format_help()
    for option in re.findall(r'"(--[a-z-]+)"', inspect.getsource(superlink.start_superlink)):
        assert option in known


def test_a_superlink_that_is_not_there_is_an_error_of_httpx(tmp_path: Path) -> None:
    from support.gate import certified

    certified(tmp_path / "c")
    (authority,) = (tmp_path / "c").rglob("ca.pem")
    with Control(1, authority) as way, pytest.raises(httpx.HTTPError):
        way.nodes()
