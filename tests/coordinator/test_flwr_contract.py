"""What the gate knows of Flower's Fleet API, and of the uvicorn that both serve with, is still so.

The gate imports nothing of flwr. If one of these tests fails after an update of flwr, read what its Fleet
router and its SuperNode's client do now, change `fedtune.coordinator.gate` with them, and then this file.
"""

from __future__ import annotations

import inspect

import h11
import httpx
import pytest
from flwr.app.message import array
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY,
)
from flwr.supercore.error.catalog import API_ERROR_MAP, ApiErrorCode
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext
from flwr.supercore.retry import http_retry
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.router import router
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from uvicorn.protocols.http.h11_impl import H11Protocol

from fedtune.coordinator.gate.passage import answer
from fedtune.coordinator.gate.routes import FLEET_ROUTES, NODE_KEY_HEADER, REQUEST_HEADERS, RESPONSE_HEADERS
from fedtune.coordinator.gate.settings import GateSettings


def test_the_routes_are_those_of_flowers_fleet_router() -> None:
    assert {(route.path, frozenset(route.methods)) for route in router.routes} == {
        (route, frozenset({"POST"})) for route in FLEET_ROUTES
    }
    assert len(set(FLEET_ROUTES)) == len(FLEET_ROUTES)


def test_the_superlink_has_routes_that_are_not_the_sites_business() -> None:
    """The reason that there is a gate: all of them are on one port."""
    served = set(create_app().openapi()["paths"])
    assert set(FLEET_ROUTES) < served
    assert {"/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task"} <= served


def test_flowers_client_asks_for_all_routes_and_no_other() -> None:
    source = inspect.getsource(FleetHttpClient)
    asked = {line.split('"')[1] for line in source.splitlines() if 'path="' in line}
    assert asked == set(FLEET_ROUTES)
    assert 'method="POST"' in inspect.getsource(ProtobufClient._unary_unary)


def test_the_headers_are_those_that_flowers_client_sends() -> None:
    request = httpx.Request("POST", "https://gate/", headers={"content-type": "a", "accept": "a"})
    context = ProtobufRequestContext("rpc", PullMessagesRequest(), request)

    def send(context: ProtobufRequestContext) -> httpx.Response:
        return httpx.Response(200)

    RuntimeVersionHttpInterceptor(component_name="SuperNode").intercept(context, send)
    NodeAuthHttpInterceptor(*generate_key_pairs()).intercept(context, send)
    assert {name.encode() for name in request.headers} - {b"host", b"content-length"} == REQUEST_HEADERS
    signed = {FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER}
    assert {name.encode() for name in signed} <= REQUEST_HEADERS
    assert FLEET_HTTP_PUBLIC_KEY_HEADER.encode() == NODE_KEY_HEADER
    assert VERSION_INCOMPATIBILITY_MESSAGE_METADATA_KEY.encode() in RESPONSE_HEADERS


def test_the_supernode_tries_again_after_503_and_ends_after_429_and_408() -> None:
    assert 503 in http_retry._RETRYABLE_STATUS_CODES
    assert not {400, 404, 408, 413, 429, 431, 500} & http_retry._RETRYABLE_STATUS_CODES
    assert answer(503).headers["retry-after"]


def test_the_superlink_refuses_nodes_with_the_statuses_that_the_gate_writes_down() -> None:
    def status(code: ApiErrorCode) -> int:
        return int(API_ERROR_MAP[code].http_status_code)

    assert status(ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED) == 412
    assert status(ApiErrorCode.FLEET_SUPERNODE_REGISTRATION_DISABLED) == 412
    assert status(ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED) == 403


def test_a_chunk_of_an_array_is_far_smaller_than_the_most_of_a_body() -> None:
    assert array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE == 5 * 2**20
    assert GateSettings.max_body_bytes > 4 * array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE


def test_the_gate_waits_less_long_than_flowers_client() -> None:
    assert inspect.signature(ProtobufClient).parameters["timeout"].default > GateSettings.superlink_seconds


@pytest.mark.parametrize(
    "name",
    ["connection_made", "connection_lost", "data_received", "send_400_response", "_should_upgrade"],
)
def test_uvicorns_protocol_has_the_methods_that_the_gates_overrides(name: str) -> None:
    assert callable(getattr(H11Protocol, name))


def test_uvicorns_protocol_has_the_attributes_that_the_gates_uses() -> None:
    source = inspect.getsource(H11Protocol)
    for name in ("app", "client", "conn", "cycle", "logger", "loop", "transport"):
        assert f"self.{name}:" in source or f"self.{name} =" in source
    assert "app = self.app" in source
    assert 'getLogger("uvicorn.error")' in source
    assert h11.Connection(h11.SERVER).their_state is h11.IDLE
