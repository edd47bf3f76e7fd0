"""The site's Flower node as a child of the client: it holds the one connection to the coordinator."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedtune.errors import MachineError, Problem
from fedtune.federation.processes import environment, free_ports, listens, spawn
from fedtune.observability.disk import disk_errors, write_all
from fedtune.site.folder import SiteFolder

__all__ = ["Node", "end_node", "start_node"]

START_SECONDS: Final = 60.0
_SECRET_BYTES: Final = 32
_LOG: Final = "node.log"
_EXIT: Final = "Exit Code: "
_MOST_LOG_BYTES: Final = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Node:
    """A running node.

    Attributes:
        process: The child.
        address: Where it hands out tasks on 127.0.0.1.
        secret: What it asks of its executor.
        log: What it writes.
        log_start: Where in there its own words begin, after those of earlier nodes.
    """

    process: subprocess.Popen[bytes]
    address: str
    secret: bytes
    log: Path
    log_start: int

    def words(self) -> str:
        """Return what it has written so far."""
        with self.log.open("rb") as file:
            file.seek(self.log_start)
            return file.read().decode("utf-8", errors="replace")

    def last_words(self) -> str:
        """Return why it ended: what Flower says below its exit code, or else the last line that it wrote."""
        lines = [line.strip() for line in self.words().splitlines() if line.strip()]
        exits = [number for number, line in enumerate(lines) if _EXIT in line]
        said = " ".join(lines[exits[-1] + 1 : exits[-1] + 3]) if exits else "".join(lines[-1:])
        return (said or "nothing")[:300]


def program() -> list[str]:
    """Return the command of Flower's node, before its options."""
    return [sys.executable, "-m", "fedtune.site.supernode_process"]


def start_node(
    folder: SiteFolder, *, server: str, insecure: bool, port: int | None, alive: Callable[[], bool]
) -> Node:
    """Start the node and wait until it takes an executor; it connects to the coordinator by itself, for ever.

    It is stopped when this process dies. Call it from the main thread: on Linux the child is bound to the
    thread that started it.

    Args:
        folder: The site's.
        server: Where the coordinator's gate is, ``host:port``.
        insecure: Speak without TLS and without a node key; for a server on loopback alone.
        port: Where it hands out tasks on 127.0.0.1; None takes a free one.
        alive: Whether to go on waiting.

    Raises:
        MachineError: FT685, something else listens there, or it did not start.
        RunError: FT705 or FT707, its secret cannot be written.
    """
    chosen = free_ports(1)[0] if port is None else port
    if listens(chosen):
        raise MachineError(
            Problem(
                code="FT685",
                what=f"another program listens on 127.0.0.1:{chosen}",
                where=f"{folder.settings}, node_port",
                fix="stop it, such as another `fedtune client start`, or set node_port to null",
            )
        )
    secret = secrets.token_bytes(_SECRET_BYTES)
    _write_secret(folder.secret, secret)
    folder.flower_home.mkdir(parents=True, exist_ok=True)
    command = [*program(), "--superlink", server]
    if insecure:
        command += ["--insecure"]
    else:
        command += ["--root-certificates", str(folder.authority)]
        command += ["--auth-supernode-private-key", str(folder.node_key)]
    command += ["--isolation", "process", "--superexec-auth-secret-file", str(folder.secret)]
    command += ["--host", "127.0.0.1", "--port", str(chosen)]
    folder.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = folder.logs / _LOG
    if log.exists() and log.stat().st_size > _MOST_LOG_BYTES:
        log.replace(log.with_suffix(".log.1"))
    with log.open("ab") as output:
        start = output.tell()
        process = spawn(command, environment(folder.flower_home), output)
    node = Node(process=process, address=f"127.0.0.1:{chosen}", secret=secret, log=log, log_start=start)
    deadline = time.monotonic() + START_SECONDS
    while not listens(chosen):
        if process.poll() is not None or time.monotonic() > deadline or not alive():
            end_node(node)
            raise MachineError(
                Problem(
                    code="FT685",
                    what=f"the site's Flower node did not start: {node.last_words()}",
                    where=str(log),
                    fix="read the end of that log, and run `fedtune client doctor`",
                )
            )
        time.sleep(0.1)
    return node


def _write_secret(path: Path, secret: bytes) -> None:
    """Write what the node asks of its executor for its owner alone, and another one at each start."""
    with disk_errors(path, kept="nothing was started", again="start the client again"):
        path.unlink(missing_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(file, secret)
        finally:
            os.close(file)


def end_node(node: Node, *, seconds: float = 10.0) -> None:
    """Stop the child: kindly, and by force if that takes too long."""
    if node.process.poll() is None:
        node.process.terminate()
        try:
            node.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.process.wait()
