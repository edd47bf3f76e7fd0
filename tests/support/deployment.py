"""A whole federation of real processes on loopback, over TLS with authenticated nodes.

One SuperLink, and for each site of a configuration a SuperNode and an executor, as hospitals would run them.
Everything is bounded in time, and nothing outlives `deployed`.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from support.enrolment import Coordinator
from support.site_process import SiteSpec

from fedtune.config.schema import Config
from fedtune.config.wire import config_to_json, config_to_yaml
from fedtune.federation.bundle import write_bundle
from fedtune.federation.processes import environment, free_ports, listens, script, spawn
from fedtune.federation.run_config import CLIENTS_KEY, CONFIG_KEY, SPLIT_KEY
from fedtune.federation.server import ROSTER_FILE, secure_folder
from fedtune.keys.authority import AUTHORITY_CERTIFICATE, COORDINATOR_KEY
from fedtune.keys.node import NODE_KEY, make_node
from fedtune.observability.run_directory import RunDirectory
from fedtune.simulation.enrolment import enrol
from fedtune.simulation.sites import load_sites

__all__ = ["DeployedSite", "Deployment", "deployed"]

START_SECONDS, STOP_SECONDS = 120.0, 15.0
CONNECTION = "coordinator"


@dataclass(frozen=True, kw_only=True)
class ServerFiles:
    """What `fedtune keys` makes for a server on loopback."""

    authority: Path
    certificate: Path
    key: Path

    @classmethod
    def of(cls, coordinator: Coordinator) -> ServerFiles:
        server = coordinator.server(ip=("127.0.0.1",))
        authority = coordinator.folder / AUTHORITY_CERTIFICATE
        return cls(authority=authority, certificate=server.certificate_path, key=server.key)


@dataclass(kw_only=True)
class DeployedSite:
    """A site's two processes.

    Attributes:
        folder: All that the site has on disk; its Flower home is ``home`` in there.
        node: Its SuperNode.
        executor: The process that answers its messages.
    """

    folder: Path
    node: subprocess.Popen[bytes]
    executor: subprocess.Popen[bytes]

    def records(self, event: str) -> list[dict[str, Any]]:
        """Return what the executor wrote down under this name."""
        path = self.folder / "records.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if record["event"] == event]


@dataclass(kw_only=True)
class Deployment:
    """A federation that waits for runs.

    Attributes:
        folder: Everything it writes, with a log of each process.
        sites: The sites by name.
        imported: A file that exists once anybody has imported the client module of the bundle.
    """

    folder: Path
    sites: dict[str, DeployedSite] = field(default_factory=dict)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def imported(self) -> Path:
        return self.folder / "the-bundle-was-imported"

    def submit(self, config: Config) -> subprocess.Popen[bytes]:
        """Start a run; the process ends when the run ends."""
        home = self.folder / "superlink"
        bundle = write_bundle(self.folder / "bundle")
        client = bundle / "client" / "app.py"
        client.write_text(client.read_text() + f"\nopen({str(self.imported)!r}, 'w').close()\n")
        run_config = self.folder / f"{config.name}.toml"
        run_config.write_text(
            f"{CONFIG_KEY} = {json.dumps(config_to_json(config))}\n"
            f'{CLIENTS_KEY} = {len(self.sites)}\n{SPLIT_KEY} = ""\n',
            encoding="utf-8",
        )
        command = [
            script("flwr"),
            "run",
            str(bundle),
            CONNECTION,
            "--stream",
            "--run-config",
            str(run_config),
        ]
        return self._start(config.name, command, home)

    def hand_over_roster(self, sites: Config, server: Config) -> None:
        """Give the coordinator its key and the roster, which the sites have already."""
        made, needed = (secure_folder(Path(each.runs_dir) / each.name) for each in (sites, server))
        with RunDirectory.create(needed.parent) as run:
            run.write_config(config_to_yaml(server))
        needed.mkdir()
        for name in (COORDINATOR_KEY, ROSTER_FILE):
            shutil.copy2(made / name, needed / name)

    def wait(self, what: str, condition: Callable[[], bool], *, seconds: float) -> None:
        """Wait until something is so; if it takes too long, fail with the end of every log."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} took longer than {seconds:g} s\n{self.logs()}")
            time.sleep(0.1)

    def run(self, config: Config, *, seconds: float) -> None:
        """Do a whole run and wait for its end."""
        submitted = self.submit(config)
        self.wait(f"run {config.name}", lambda: submitted.poll() is not None, seconds=seconds)

    def logs(self) -> str:
        """Return the end of each process's log."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-25:])
            for path in sorted(self.folder.glob("*.log"))
        )

    def start(self, config: Config) -> None:
        """Start a SuperLink, and a SuperNode and an executor for each site; return when all are ready."""
        sites = load_sites(config)
        names = sites.partition.names
        if config.secagg.enabled:
            run = Path(config.runs_dir) / config.name
            run.mkdir(parents=True)
            enrol(run, config, sites.training_examples())
        coordinator = Coordinator(self.folder)
        coordinator.begin()
        server = ServerFiles.of(coordinator)
        port, *node_ports = free_ports(1 + len(names))
        superlink = self._start_superlink(server, port)
        executors = [
            self._start_executor(config, index, name, node_port)
            for index, (name, node_port) in enumerate(zip(names, node_ports, strict=True))
        ]
        self.wait(
            "the start of the SuperLink",
            lambda: superlink.poll() is not None or listens(port),
            seconds=START_SECONDS,
        )
        for name, node_port, executor in zip(names, node_ports, executors, strict=True):
            node = self._start_node(server, port, name, node_port)
            self.sites[name] = DeployedSite(folder=self.folder / name, node=node, executor=executor)
        self.wait(
            "the start of the sites",
            lambda: all(
                site.records("ready") or site.executor.poll() is not None for site in self.sites.values()
            ),
            seconds=START_SECONDS,
        )
        ended = [process.args for process in self._processes if process.poll() is not None]
        assert not ended, f"{ended} ended at the start\n{self.logs()}"

    def stop(self) -> None:
        """End every process, and what it started, and see that all are gone."""
        family = []
        for process in self._processes:
            with suppress(psutil.NoSuchProcess):
                parent = psutil.Process(process.pid)
                family += [*parent.children(recursive=True), parent]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for member in family:
                with suppress(psutil.NoSuchProcess):
                    end(member)
            _, family = psutil.wait_procs(family, timeout=STOP_SECONDS)
        for process in self._processes:
            process.wait(timeout=STOP_SECONDS)
        assert not family, f"still there: {family}"

    def _start_superlink(self, server: ServerFiles, port: int) -> subprocess.Popen[bytes]:
        home = self.folder / "superlink"
        home.mkdir(parents=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
            f'address = "127.0.0.1:{port}"\nroot-certificates = "{server.authority}"\n',
            encoding="utf-8",
        )
        command = [script("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--ssl-ca-certfile", str(server.authority), "--ssl-certfile", str(server.certificate)]
        command += ["--ssl-keyfile", str(server.key), "--enable-supernode-auth"]
        return self._start("superlink", command, home)

    def _start_executor(self, config: Config, index: int, name: str, port: int) -> subprocess.Popen[bytes]:
        folder = self.folder / name
        folder.mkdir()
        (folder / "secret").write_bytes(secrets.token_bytes(32))
        spec = SiteSpec(
            config=config_to_json(config),
            index=index,
            runtime_address=f"127.0.0.1:{port}",
            secret_file=str(folder / "secret"),
            records=str(folder / "records.jsonl"),
        ).write(folder / "spec.json")
        program = str(Path(__file__).with_name("site_process.py"))
        return self._start(f"{name}-executor", [sys.executable, "-P", program, str(spec)], folder / "home")

    def _start_node(
        self, server: ServerFiles, port: int, name: str, node_port: int
    ) -> subprocess.Popen[bytes]:
        folder = self.folder / name
        request = make_node(folder, site=name, federation="f")
        public = request.node_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self._register(server, port, public)
        command = [script("flower-supernode"), "--superlink", f"127.0.0.1:{port}"]
        command += ["--root-certificates", str(server.authority)]
        command += ["--auth-supernode-private-key", str(folder / NODE_KEY)]
        command += ["--isolation", "process", "--superexec-auth-secret-file", str(folder / "secret")]
        command += ["--host", "127.0.0.1", "--port", str(node_port)]
        return self._start(f"{name}-supernode", command, folder / "home")

    def _register(self, server: ServerFiles, port: int, public_key: bytes) -> None:
        with ControlHttpClient.from_server_address(
            server_address=f"127.0.0.1:{port}",
            insecure=False,
            root_certificates=server.authority.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
        ) as control:
            assert control.RegisterNode(RegisterNodeRequest(public_key=public_key)).node_id

    def _start(self, name: str, command: list[str], home: Path) -> subprocess.Popen[bytes]:
        home.mkdir(exist_ok=True)
        with (self.folder / f"{name}.log").open("wb") as log:
            process = spawn(command, environment(home), log)
        self._processes.append(process)
        return process


@contextmanager
def deployed(config: Config, folder: Path) -> Iterator[Deployment]:
    """Run the sites of a configuration as processes.

    Args:
        config: What the sites work by; a run that is submitted may differ in what concerns the server alone.
        folder: Where everything is written; must not exist.
    """
    folder.mkdir(parents=True)
    deployment = Deployment(folder=folder)
    try:
        at_sites = replace(config, runs_dir=str(folder / "sites"))
        deployment.start(at_sites)
        if config.secagg.enabled:
            deployment.hand_over_roster(at_sites, config)
        yield deployment
    finally:
        deployment.stop()
