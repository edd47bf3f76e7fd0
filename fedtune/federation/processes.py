"""Flower's own programs as child processes: quiet, on loopback, and gone when this process is gone."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

__all__ = ["environment", "free_ports", "listens", "script", "spawn", "stopped_at_the_end"]

STOP_SECONDS = 15.0
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "NO_COLOR": "1",
}


def environment(home: Path) -> dict[str, str]:
    """Return this process's environment, made fit for Flower's programs.

    Guarantees: no telemetry, no update check, no installation of packages; the programs find each other by
    their bare names, as Flower starts them; calls on loopback never go to a proxy.

    Args:
        home: Flower's home: its configuration and the bundles it unpacks.
    """
    scripts = str(Path(sys.executable).parent)
    direct = ",".join(filter(None, [os.environ.get("no_proxy", os.environ.get("NO_PROXY")), "127.0.0.1"]))
    return (
        os.environ
        | QUIET
        | {
            "FLWR_HOME": str(home),
            "PATH": os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)]),
            "NO_PROXY": direct,
            "no_proxy": direct,
        }
    )


def script(name: str) -> str:
    """Return the path of a program that is installed beside this Python."""
    return str(Path(sys.executable).parent / name)


def spawn(command: Sequence[str], env: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program in a process group of its own; on Linux it is stopped when this process dies."""
    return subprocess.Popen(  # noqa: S603  # our own scripts, no shell
        list(command),
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
    )


def _end_with_parent() -> None:
    """Ask the kernel to stop this child when its parent dies, even by SIGKILL (prctl, PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@contextmanager
def stopped_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a process that `spawn` started, with its group: kindly, and by force if that takes too long."""
    try:
        yield
    finally:
        for stop in (signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                os.killpg(process.pid, stop)
                try:
                    process.wait(timeout=STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    continue


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def listens(port: int) -> bool:
    """Say whether somebody accepts connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
