"""A real SuperLink behind the gate, and real SuperNodes and the command line of Flower in front of it."""

from __future__ import annotations

import logging
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from support.enrolment import Coordinator
from support.gate import certified, client_of, gate_settings, trusting
from support.namespace import HERE, THERE, namespace, there

from fedtune.coordinator.gate.server import Gate
from fedtune.federation.bundle import write_bundle
from fedtune.federation.processes import (
    environment,
    free_ports,
    listens,
    script,
    spawn,
    stopped_at_the_end,
)
from fedtune.keys.private import public_hash, read_node_key
from fedtune.secagg.entry import fingerprint

pytestmark = pytest.mark.e2e

SECONDS = 50.0
REACHES = "import socket, sys; sys.exit(socket.socket().connect_ex((sys.argv[1], int(sys.argv[2]))) != 0)"


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())

    def of(self, *words: str) -> list[str]:
        return [line for line in self.said if all(word in line for word in words)]


@dataclass(kw_only=True)
class Site:
    """A SuperNode that runs, its log, and the fingerprint of its key."""

    process: subprocess.Popen[bytes]
    log: Path
    key: str
    node_id: int


@dataclass(kw_only=True)
class Hub:
    """A coordinator: SuperLink on loopback, gate on every address, and what the gate said."""

    coordinator: Coordinator
    port: int
    gate: Gate
    running: ExitStack
    lines: Lines = field(default_factory=Lines)

    @property
    def log(self) -> str:
        return (self.coordinator.root / "superlink.log").read_text(encoding="utf-8", errors="replace")

    def address(self, host: str = "127.0.0.1") -> str:
        return f"{host}:{self.gate.addresses[0].port}"

    @contextmanager
    def control(self) -> Iterator[ControlHttpClient]:
        """The Control API, as whoever is on the coordinator's machine reaches it."""
        with ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{self.port}",
            insecure=False,
            root_certificates=(self.coordinator.folder / "ca.pem").read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
        ) as client:
            yield client

    def site(
        self, name: str, *, registered: bool, host: str = "127.0.0.1", inside: str | None = None
    ) -> Site:
        """Start a SuperNode that knows the gate alone."""
        self.coordinator.ask(name)
        folder = self.coordinator.root / name
        public = read_node_key(folder / "node.key").public_key()
        node_id = 0
        if registered:
            pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            with self.control() as control:
                node_id = control.RegisterNode(RegisterNodeRequest(public_key=pem)).node_id
        (folder / "secret").write_bytes(secrets.token_bytes(32))
        (port,) = free_ports(1)
        process, log = self.start(
            name,
            [
                *(script("flower-supernode"), "--superlink", self.address(host)),
                *("--root-certificates", str(self.coordinator.folder / "ca.pem")),
                *("--auth-supernode-private-key", str(folder / "node.key")),
                *("--isolation", "process", "--superexec-auth-secret-file", str(folder / "secret")),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            inside=inside,
        )
        return Site(process=process, log=log, key=fingerprint(public_hash(public)), node_id=node_id)

    def flwr(
        self, name: str, *arguments: str, host: str = "127.0.0.1", inside: str | None = None
    ) -> tuple[subprocess.Popen[bytes], Path]:
        """Start Flower's own command line against the gate."""
        home = self.coordinator.root / f"{name}-home"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "gate"\n\n[superlink.gate]\naddress = "{self.address(host)}"\n'
            f'root-certificates = "{self.coordinator.folder / "ca.pem"}"\n',
            encoding="utf-8",
        )
        return self.start(name, [script("flwr"), *arguments], inside=inside, home=home)

    def start(
        self, name: str, command: Sequence[str], *, inside: str | None = None, home: Path | None = None
    ) -> tuple[subprocess.Popen[bytes], Path]:
        root = self.coordinator.root
        home = home or root / f"{name}-home"
        home.mkdir(exist_ok=True)
        path = root / f"{name}.log"
        with path.open("wb") as log:
            process = spawn(there(inside, command) if inside else command, environment(home), log)
        self.running.enter_context(stopped_at_the_end(process))
        return process, path

    def wait(self, what: str, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
                    for path in self.coordinator.root.glob("*.log")
                )
                raise AssertionError(f"{what} took too long\n{self.lines.said}\n{logs}")
            time.sleep(0.05)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    coordinator = certified(tmp_path_factory.mktemp("hub"), ip=("127.0.0.1", HERE))
    tls = coordinator.root / "tls"
    (port,) = free_ports(1)
    settings = gate_settings(coordinator, listen=("0.0.0.0:0",), superlink=f"127.0.0.1:{port}")
    with ExitStack() as running:
        hub = Hub(coordinator=coordinator, port=port, gate=Gate(settings), running=running)
        logger = logging.getLogger("fedtune.coordinator.gate")
        logger.addHandler(hub.lines)
        running.callback(logger.removeHandler, hub.lines)
        level = logger.level
        logger.setLevel(logging.INFO)
        running.callback(logger.setLevel, level)
        superlink, _ = hub.start(
            "superlink",
            [
                *(script("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)),
                *("--ssl-ca-certfile", str(coordinator.folder / "ca.pem")),
                *("--ssl-certfile", str(tls / "hub.pem"), "--ssl-keyfile", str(tls / "hub.key")),
                "--enable-supernode-auth",
            ],
        )
        running.enter_context(hub.gate)
        hub.wait("the SuperLink", lambda: superlink.poll() is not None or listens(port))
        assert superlink.poll() is None, hub.log
        yield hub


def test_a_registered_node_is_let_in_until_it_is_removed_and_an_unknown_one_is_not(hub: Hub) -> None:
    known, unknown = hub.site("known", registered=True), hub.site("unknown", registered=False)
    hub.wait("the activation", lambda: hub.lines.of(known.key, "is there"))
    hub.wait(
        "a poll",
        lambda: (
            hub.gate.traffic().nodes.get(known.key, None) and hub.gate.traffic().nodes[known.key].requests > 2
        ),
    )

    hub.wait("the refusal", lambda: unknown.process.poll() is not None)
    assert hub.lines.of("127.0.0.1", "refused /v1/fleet/activate-node with 412", unknown.key)
    assert "Failed to activate SuperNode" in unknown.log.read_text()
    assert unknown.key not in hub.gate.traffic().nodes

    assert known.process.poll() is None
    with hub.control() as control:
        control.UnregisterNode(UnregisterNodeRequest(node_id=known.node_id))
    hub.wait("the end of the removed node", lambda: known.process.poll() is not None)
    assert hub.lines.of("127.0.0.1", "refused /v1/fleet/", "with 401", known.key)


def test_the_control_plane_is_not_reached_through_the_gate(hub: Hub) -> None:
    listing, list_log = hub.flwr("ls", "ls", "gate")
    submitting, run_log = hub.flwr("run", "run", str(write_bundle(hub.coordinator.root / "bundle")), "gate")
    routes = ["/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/acquire-task", "/docs"]
    with client_of(hub.gate, trusting(hub.coordinator), host="127.0.0.1") as client:
        for route in routes:
            for answer in (client.post(route, content=b""), client.get(route)):
                assert (answer.status_code, answer.content) == (404, b"")
                assert hub.lines.of(f"refused {answer.request.method} {route}:")
    for process in (listing, submitting):
        hub.wait("the end of a command", lambda process=process: process.poll() is not None)  # type: ignore[misc]
        assert process.returncode != 0
    assert "404" in list_log.read_text() + run_log.read_text()
    assert hub.lines.of("refused POST /v1/control/list-runs")
    assert hub.lines.of("refused POST /v1/control/start-run")
    assert "/v1/control/start-run" not in hub.log
    assert "/v1/control/list-runs" not in hub.log


def test_from_another_machine_there_is_the_gate_and_nothing_else(hub: Hub) -> None:
    with namespace() as inside, ExitStack() as running:
        before, hub.running = hub.running, running
        try:
            site = hub.site("far", registered=True, host=HERE, inside=inside)
            submitting, _ = hub.flwr(
                "far-run",
                *("run", str(write_bundle(hub.coordinator.root / "far-bundle")), "gate"),
                host=HERE,
                inside=inside,
            )

            def reaches(host: str, port: int) -> bool:
                probe = [sys.executable, "-c", REACHES, host, str(port)]
                return subprocess.run(there(inside, probe), check=False, timeout=SECONDS).returncode == 0

            assert reaches(HERE, hub.gate.addresses[0].port)
            assert not reaches(HERE, hub.port)
            assert not reaches("127.0.0.1", hub.port)

            hub.wait("the activation", lambda: hub.lines.of(THERE, site.key, "is there"))
            hub.wait("the end of the command", lambda: submitting.poll() is not None)
            assert submitting.returncode != 0
            assert hub.lines.of(THERE, "refused POST /v1/control/start-run")
            assert f"{THERE}:" in hub.log, "the SuperLink's own log names the site's address"
        finally:
            hub.running = before


def test_the_superlink_is_only_on_loopback(hub: Hub) -> None:
    """What `fedtune server start` does, seen from this machine's other addresses."""
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.2", hub.port)) != 0
