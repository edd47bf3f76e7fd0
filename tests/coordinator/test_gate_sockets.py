"""A gate on real sockets with real TLS: what reaches the SuperLink's place behind it, and what does not."""

from __future__ import annotations

import logging
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import generate_key_pairs
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.responses import Response
from support.enrolment import Coordinator
from support.gate import (
    NOWHERE,
    TRICKS,
    Seen,
    StandIn,
    certified,
    client_of,
    gate_settings,
    mortal,
    serving,
    talk,
    trusting,
)

from fedtune.coordinator.gate.routes import FLEET_ROUTES, REQUEST_HEADERS
from fedtune.coordinator.gate.server import Gate
from fedtune.coordinator.gate.traffic import read_traffic
from fedtune.errors import FederationError
from fedtune.federation.processes import free_ports

ROUTE = "/v1/fleet/get-run"
ADDED = {b"host", b"connection", b"user-agent", b"accept-encoding", b"transfer-encoding", b"x-forwarded-for"}


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory: pytest.TempPathFactory) -> Coordinator:
    return certified(tmp_path_factory.mktemp("coordinator"))


@pytest.fixture(scope="module")
def context(coordinator: Coordinator) -> ssl.SSLContext:
    return trusting(coordinator)


@pytest.fixture(scope="module")
def upstream() -> StandIn:
    return StandIn()


@pytest.fixture(scope="module")
def gate(coordinator: Coordinator, upstream: StandIn) -> Iterator[Gate]:
    """One for all tests that leave it as it was; it hardly limits how often."""
    with (
        serving(upstream, coordinator) as superlink,
        Gate(gate_settings(coordinator, superlink=superlink, burst_requests=10**6)) as gate,
    ):
        yield gate


def request(
    target: str = ROUTE, *headers: str, method: str = "POST", body: bytes = b"", close: bool = True
) -> bytes:
    end = "connection: close" if close else "connection: keep-alive"
    length = f"content-length: {len(body)}"
    return (
        "\r\n".join([f"{method} {target} HTTP/1.1", "host: gate", length, end, *headers, "", ""]).encode()
        + body
    )


def statuses(said: bytes) -> list[int]:
    return [int(line.split()[1]) for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]


def test_every_fleet_route_gets_there_and_back(
    gate: Gate, upstream: StandIn, context: ssl.SSLContext
) -> None:
    upstream.forget()
    with client_of(gate, context) as client:
        for route in FLEET_ROUTES:
            assert client.post(route, content=route.encode()).content == route.encode()
    assert [(seen.method, seen.target.decode(), seen.body) for seen in upstream.seen] == [
        ("POST", route, route.encode()) for route in FLEET_ROUTES
    ]
    assert {name for seen in upstream.seen for name, _ in seen.headers} <= ADDED | REQUEST_HEADERS


def only_fleet_requests(seen: list[Seen]) -> bool:
    return all(
        each.method == "POST"
        and each.target.decode("latin-1") in FLEET_ROUTES
        and each.query == b""
        and {name for name, _ in each.headers} <= ADDED | REQUEST_HEADERS
        for each in seen
    )


PIECES = ["/", "//", "v1", "fleet", "control", "runtime", "get-run", "start-run", "..", ".", "%2e%2e", "%2f"]
PIECES += [";a=b", "?", "#", "\\", "%00", "V1", "Fleet", "https://127.0.0.1", "docs", "*", "@", ":443"]
targets = (
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join)
    | st.sampled_from(FLEET_ROUTES)
    | st.builds(
        lambda route, at, piece: route[:at] + piece + route[at:],
        st.sampled_from(FLEET_ROUTES),
        st.integers(0, 40),
        st.sampled_from(PIECES),
    )
    | st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=60)
)
methods = st.sampled_from(["POST"] * 4 + ["GET", "PUT", "HEAD", "OPTIONS", "CONNECT", "TRACE", "post", "PRI"])
names = st.sampled_from(
    [name.decode() for name in REQUEST_HEADERS]
    + ["Flwr-Public-Key", "upgrade", "x-forwarded-for", "transfer-encoding", "content-length", "te"]
    + ["expect", "connection", "x-http-method-override", "x-original-url", "x-rewrite-url", "host", "cookie"]
)  # fmt: skip
values = st.sampled_from(
    ["", "a", "websocket", "chunked", "identity", "0", "3", "100-continue", "upgrade", "GET"]
)
values |= st.sampled_from(["/v1/control/start-run", "trailers", "127.0.0.1", "gate", "a, b"])


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(methods, targets, st.lists(st.tuples(names, values), max_size=4), st.binary(max_size=20))
def test_whatever_is_asked_nothing_but_fleet_requests_reaches_the_superlink(
    gate: Gate,
    upstream: StandIn,
    context: ssl.SSLContext,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes,
) -> None:
    upstream.forget()
    lines = [f"{name}: {value}" for name, value in headers]
    plain = method == "POST" and target in FLEET_ROUTES and not headers
    asked = request(target, *lines, method=method, body=body)
    # A body that is announced otherwise than it comes is waited for: not here.
    said = talk(gate, context, asked, seconds=20 if plain else 0.3)
    assert only_fleet_requests(upstream.seen)
    if not upstream.seen:
        assert all(status in {404, 400, 413, 503} for status in statuses(said))
    if plain:
        assert [seen.body for seen in upstream.seen] == [body]
        assert statuses(said) == [200]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_whatever_bytes_come_nothing_but_fleet_requests_reaches_the_superlink(
    gate: Gate, upstream: StandIn, context: ssl.SSLContext, pieces: list[bytes]
) -> None:
    upstream.forget()
    ends = request("/nothing")
    assert set(statuses(talk(gate, context, *pieces, b"\r\n\r\n", ends))) <= {400, 404}
    assert upstream.seen == []


HEAD = b"POST /v1/fleet/get-run HTTP/1.1\r\nhost: a\r\n"
SMUGGLED = request("/v1/control/start-run")


@pytest.mark.parametrize(
    ("raw", "bodies"),
    [
        (request(body=b"x", close=False) + SMUGGLED, [b"x"]),
        (request(body=SMUGGLED), [SMUGGLED]),
        (HEAD + b"content-length: 0\r\ntransfer-encoding: chunked\r\n"
         b"connection: close\r\n\r\n3\r\nabc\r\n0\r\n\r\n", [b"abc"]),
        (HEAD + b"content-length: 1\r\ncontent-length: 2\r\n\r\nab", []),
        (HEAD + b"transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n", []),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\n\r\n", [None]),
        (HEAD + b"content-length : 0\r\n\r\n", []),
        (b"POST /v1/fleet/get-run HTTP/1.1\r\ncontent-length: 0\r\n\r\n", []),
        (b"POST /v1/fleet/get-run\r\n\r\n", []),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", []),
        (b"GET /v1/fleet/get-run HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
         b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n", []),
    ],
)  # fmt: skip
def test_no_second_request_hides_in_the_first(
    gate: Gate, upstream: StandIn, context: ssl.SSLContext, raw: bytes, bodies: list[bytes | None]
) -> None:
    upstream.forget()
    talk(gate, context, raw, seconds=1.0)
    deadline = time.monotonic() + 5
    while len(upstream.seen) < len(bodies) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert only_fleet_requests(upstream.seen)
    assert [seen.body for seen in upstream.seen] == bodies


def test_no_trick_with_a_path_reaches_the_superlink(
    gate: Gate, upstream: StandIn, context: ssl.SSLContext
) -> None:
    upstream.forget()
    for target in TRICKS:
        assert statuses(talk(gate, context, request(target))) == ([404] if target else [400])
    assert upstream.seen == []


@pytest.mark.parametrize("target", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs", "/health"])
def test_everything_else_gets_an_empty_404_and_one_line(
    gate: Gate,
    upstream: StandIn,
    context: ssl.SSLContext,
    target: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upstream.forget()
    caplog.set_level(logging.WARNING, "fedtune.coordinator.gate")
    # A gate of its own: the flood of the tests above has used up this peer's lines.
    with Gate(gate.settings) as fresh:
        as_another = "x-forwarded-for: 192.0.2.7"
        said = talk(fresh, context, request(target, as_another, close=False, body=b"BODY"))
    assert said.startswith(b"HTTP/1.1 404 ")
    assert said.endswith(b"\r\n\r\n")
    assert upstream.seen == []
    assert caplog.messages == [f"127.0.0.1: refused POST {target}: not a route of the Fleet API"]


def test_a_large_body_passes_and_a_larger_one_is_refused_while_it_comes(
    coordinator: Coordinator, upstream: StandIn, gate: Gate, context: ssl.SSLContext
) -> None:
    upstream.forget()
    with client_of(gate, context) as client:
        body = bytes(range(256)) * 2**15  # 8 MiB
        assert client.post(ROUTE, content=body).content == body
    small = gate_settings(coordinator, superlink=gate.settings.superlink, max_body_bytes=2**20)
    with Gate(small) as other, client_of(other, context) as client:
        assert client.post(ROUTE, content=iter([bytes(2**16)] * 32)).status_code == 413
        assert client.post(ROUTE, content=bytes(2**20 + 1)).status_code == 413
        assert client.post(ROUTE, content=b"after").content == b"after"
    assert [seen.body for seen in upstream.seen] == [body, None, b"after"]


def supernode(gate: Gate, coordinator: Coordinator) -> FleetHttpClient:
    """The client that Flower's SuperNode speaks through."""
    client: FleetHttpClient = FleetHttpClient.from_server_address(
        str(gate.addresses[0]),
        insecure=False,
        root_certificates=(coordinator.folder / "ca.pem").read_bytes(),
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(*generate_key_pairs()),
        ],
    )
    return client


def test_flowers_own_client_waits_for_a_superlink_that_is_away_and_goes_on(
    coordinator: Coordinator,
) -> None:
    """Three times the SuperLink is killed with a connection open, and is there again at the second retry."""
    (port,) = free_ports(1)
    retry = make_simple_http_retry_invoker()
    with (
        Gate(gate_settings(coordinator, superlink=f"127.0.0.1:{port}")) as gate,
        supernode(gate, coordinator) as client,
    ):
        for _ in range(3):
            with ExitStack() as running:
                waits: list[float] = []

                def wait(seconds: float, waits: list[float] = waits, running: ExitStack = running) -> None:
                    waits.append(seconds)
                    if len(waits) == 2:
                        running.enter_context(mortal(coordinator, port))

                retry.wait_function = wait
                for _ in range(3):
                    answer = retry.invoke(client.PullMessages, PullMessagesRequest())
                    assert isinstance(answer, PullMessagesResponse)
                assert len(waits) == 2
    (node,) = gate.traffic().nodes.values()
    assert node.requests == 9


def test_what_flowers_own_client_says_of_itself_arrives_unchanged(coordinator: Coordinator) -> None:
    stand_in = StandIn(answer=pulled)
    with (
        serving(stand_in, coordinator) as superlink,
        Gate(gate_settings(coordinator, superlink=superlink)) as gate,
        supernode(gate, coordinator) as client,
    ):
        client.PullMessages(PullMessagesRequest(message_ids=["a"]))
    (seen,) = stand_in.seen
    assert {name for name, _ in seen.headers} - ADDED == REQUEST_HEADERS
    assert seen.body == PullMessagesRequest(message_ids=["a"]).SerializeToString()
    (node,) = gate.traffic().nodes.values()
    assert (node.requests, node.bytes_in) == (1, len(seen.body))


async def pulled(seen: Seen) -> Response:
    return Response(PullMessagesResponse().SerializeToString(), media_type="application/protobuf")


def test_flowers_own_client_gives_up_what_is_too_large(coordinator: Coordinator) -> None:
    with (
        serving(StandIn(answer=pulled), coordinator) as superlink,
        Gate(gate_settings(coordinator, superlink=superlink, max_body_bytes=10)) as gate,
        supernode(gate, coordinator) as client,
    ):
        retry, asked = make_simple_http_retry_invoker(), PullMessagesRequest(message_ids=["x" * 10**6])
        with pytest.raises(httpx.HTTPStatusError, match="413"):
            retry.invoke(client.PullMessages, asked)


def test_no_proxy_of_the_environment_is_asked(
    coordinator: Coordinator, gate: Gate, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, f"http://{NOWHERE}")
        monkeypatch.setenv(name.lower(), f"http://{NOWHERE}")
    with Gate(gate.settings) as other, client_of(other, context) as client:
        assert client.post(ROUTE, content=b"x").status_code == 200


def test_a_superlink_with_another_authority_is_not_spoken_to(
    coordinator: Coordinator, context: ssl.SSLContext, tmp_path: Path
) -> None:
    stand_in = StandIn()
    with (
        serving(stand_in, certified(tmp_path / "other")) as superlink,
        Gate(gate_settings(coordinator, superlink=superlink)) as gate,
        client_of(gate, context) as client,
    ):
        assert client.post(ROUTE, content=b"x").status_code == 503
    assert stand_in.seen == []


def ends_within(wire: socket.socket, seconds: float) -> bool:
    wire.settimeout(seconds)
    try:
        while wire.recv(2**16):
            pass
    except TimeoutError:
        return False
    except (ConnectionError, ssl.SSLError):
        return True
    return True


@pytest.mark.parametrize("said", [b"", b"POST /v1/fleet/get-run HTTP/1.1\r\nhost:"])
def test_a_connection_that_says_nothing_whole_is_ended(
    coordinator: Coordinator, context: ssl.SSLContext, said: bytes
) -> None:
    with Gate(gate_settings(coordinator, head_seconds=0.2)) as gate:
        address = gate.addresses[0]
        with (
            socket.create_connection((address.host, address.port)) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as wire,
        ):
            wire.sendall(said)
            assert ends_within(wire, 20)


def test_a_second_request_that_drips_is_ended_and_one_in_time_is_not(
    gate: Gate, coordinator: Coordinator, context: ssl.SSLContext
) -> None:
    slow = gate_settings(coordinator, superlink=gate.settings.superlink, head_seconds=0.5)
    with Gate(slow) as other:
        address = other.addresses[0]
        with (
            socket.create_connection((address.host, address.port)) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as wire,
        ):
            for _ in range(2):
                wire.sendall(request(close=False, body=b"x"))
                said = b""
                while not said.endswith(b"\r\n\r\nx"):
                    said += wire.recv(2**16)
                assert statuses(said) == [200]
            begun = time.monotonic()
            wire.settimeout(0.05)
            ended = False
            while not ended and time.monotonic() < begun + 20:
                try:
                    wire.sendall(b"a")
                    ended = wire.recv(1) == b""
                except TimeoutError:
                    continue
                except (ConnectionError, ssl.SSLError):
                    ended = True
            assert ended


def test_a_handshake_that_does_not_come_is_ended(coordinator: Coordinator) -> None:
    with Gate(gate_settings(coordinator, handshake_seconds=0.2)) as gate:
        address = gate.addresses[0]
        with socket.create_connection((address.host, address.port)) as plain:
            assert ends_within(plain, 20)


@pytest.mark.parametrize("size", [16_500, 17_000, 100_000, 10**6])
def test_headers_that_are_too_many_are_refused(
    gate: Gate, upstream: StandIn, context: ssl.SSLContext, size: int
) -> None:
    """h11 has a limit only for headers whose end is not there yet: 400, or nothing for who still sends."""
    upstream.forget()
    said = talk(gate, context, request(ROUTE, f"accept: {'a' * size}"))
    assert statuses(said) in ([431], [400], [])
    assert upstream.seen == []
    assert statuses(talk(gate, context, request(ROUTE, f"accept: {'a' * 15_000}"))) == [200]


def test_http_without_tls_is_not_answered(gate: Gate) -> None:
    address = gate.addresses[0]
    with socket.create_connection((address.host, address.port), timeout=20) as plain:
        plain.sendall(request())
        said = b""
        try:
            while more := plain.recv(2**16):
                said += more
        except ConnectionError:
            pass
    assert b"HTTP" not in said


@pytest.mark.parametrize("limit", ["max_connections", "max_connections_per_peer"])
def test_a_connection_too_many_is_told_to_come_back(
    gate: Gate, coordinator: Coordinator, context: ssl.SSLContext, limit: str
) -> None:
    few = gate_settings(coordinator, superlink=gate.settings.superlink, **{limit: 2})
    with Gate(few) as other:
        for _ in range(3):
            with client_of(other, context) as one, client_of(other, context) as two:
                assert [client.post(ROUTE, content=b"x").status_code for client in (one, two)] == [200, 200]
                said = talk(other, context, request(close=False))
                assert statuses(said) == [503]
                assert b"retry-after: 5" in said
            wait_for_end_of_connections(other)


def wait_for_end_of_connections(gate: Gate) -> None:
    server = gate._server
    assert server is not None
    deadline = time.monotonic() + 20
    while server.server_state.connections:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_listens_on_ipv4_and_ipv6(gate: Gate, coordinator: Coordinator, context: ssl.SSLContext) -> None:
    both = gate_settings(coordinator, superlink=gate.settings.superlink, listen=("127.0.0.1:0", "[::1]:0"))
    with Gate(both) as other:
        assert [address.is_v6 for address in other.addresses] == [False, True]
        for address in other.addresses:
            answer = httpx.post(f"https://{address}{ROUTE}", content=b"x", verify=context, trust_env=False)
            assert answer.content == b"x"


def test_a_port_that_is_taken_is_named_and_nothing_is_left_open(coordinator: Coordinator) -> None:
    (free,) = free_ports(1)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = (f"127.0.0.1:{free}", f"127.0.0.1:{taken.getsockname()[1]}", "192.0.2.7:9092")
        with pytest.raises(FederationError) as caught:
            Gate(gate_settings(coordinator, listen=listen)).start()
        assert [(problem.code, problem.where) for problem in caught.value.problems] == [
            ("FT650", listen[1]),
            ("FT650", listen[2]),
        ]
    with socket.create_server(("127.0.0.1", free)):
        pass


def test_a_gate_that_ended_says_so(coordinator: Coordinator) -> None:
    gate = Gate(gate_settings(coordinator))
    with pytest.raises(FederationError, match="FT652"):
        gate.check()
    gate.start()
    gate.check()
    gate.stop()
    gate.stop()
    with pytest.raises(FederationError, match="FT652"):
        gate.check()
    with pytest.raises(RuntimeError):
        gate.start()


def test_a_gate_that_fails_says_why(coordinator: Coordinator, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate(gate_settings(coordinator))
    monkeypatch.setattr("uvicorn.Server.startup", None)
    with pytest.raises(FederationError, match="FT652: the gate has ended: TypeError"):
        gate.start()


def test_traffic_is_written_and_goes_on(
    gate: Gate, coordinator: Coordinator, context: ssl.SSLContext, tmp_path: Path
) -> None:
    path = tmp_path / "traffic.json"
    with serving(StandIn(answer=pulled), coordinator) as superlink:
        kept = gate_settings(coordinator, superlink=superlink, traffic_file=path)
        for turn in (1, 2):
            with Gate(kept) as other, supernode(other, coordinator) as client:
                client.PullMessages(PullMessagesRequest(message_ids=["a"]))
            read = read_traffic(path)
            assert read is not None
            assert read == other.traffic()
            assert len(read.nodes) == turn  # each client has a key of its own
            assert all((node.requests, node.bytes_out) == (1, 0) for node in read.nodes.values())


def test_a_damaged_traffic_file_keeps_nobody_out(
    coordinator: Coordinator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "traffic.json"
    path.write_text("{")
    with Gate(gate_settings(coordinator, traffic_file=path)):
        pass
    assert any("traffic is counted from 0" in line for line in caplog.messages)
    assert read_traffic(path) is not None


def test_tls_is_12_at_least_and_the_certificates_are_checked(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    from fedtune.coordinator.gate.tls import towards_sites, towards_superlink
    from fedtune.keys.certificates import utc_now

    fine = gate_settings(coordinator)
    for made in (towards_sites(fine, utc_now()), towards_superlink(fine)):
        assert made.minimum_version == ssl.TLSVersion.TLSv1_2
    assert towards_superlink(fine).check_hostname
    assert towards_superlink(fine).verify_mode == ssl.CERT_REQUIRED

    other = certified(tmp_path / "other", ip=("192.0.2.7",))
    (other.root / "tls" / "hub.key").chmod(0o640)
    mixed = gate_settings(other, authority=coordinator.folder / "ca.pem")
    with pytest.raises(FederationError) as caught:
        Gate(mixed).start()
    found = [(problem.code, problem.what) for problem in caught.value.problems]
    assert [code for code, _ in found] == ["FT630", "FT631", "FT631"]
    assert "not signed by the authority" in found[1][1]
    assert "does not hold for 127.0.0.1" in found[2][1]
    with pytest.raises(FederationError, match="not that of the server's key"):
        Gate(gate_settings(coordinator, key=certified(tmp_path / "third").root / "tls" / "hub.key")).start()
