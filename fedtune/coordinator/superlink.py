"""Flower's SuperLink as a child of the server: on loopback, with TLS, its database on disk.

Whoever reaches a SuperLink can register nodes and run code on it: its Control API asks for no login. So it
binds to 127.0.0.1, and sites come through the gate.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from fedtune.coordinator.folder import HOME_VARIABLE, INSECURE_VARIABLE, CoordinatorFolder
from fedtune.errors import MachineError, Problem
from fedtune.federation.processes import environment, listens, spawn

__all__ = ["LOG", "end_leftovers", "end_process", "has_executor", "start_superlink"]

START_SECONDS = 60.0
LOG = "superlink.log"
_KEPT_LOGS = 14


def start_superlink(
    folder: CoordinatorFolder, port: int, *, insecure: bool, alive: Callable[[], bool]
) -> subprocess.Popen[bytes]:
    """Start the SuperLink and wait until it listens.

    It is stopped when this process dies, and with it every ServerApp. Call it from the main thread: on Linux
    the child is bound to the thread that started it.

    Args:
        folder: The coordinator's.
        port: Where it listens on 127.0.0.1.
        insecure: Without TLS and without node keys: whoever can log in to this machine can pose as a site.
        alive: Whether to go on waiting.

    Raises:
        MachineError: FT664, something else listens there, or it did not start.
    """
    if listens(port):
        raise MachineError(
            Problem(
                code="FT664",
                what=f"another program listens on 127.0.0.1:{port}",
                where=f"{folder.settings}, superlink_port",
                fix="stop it, such as another `fedtune server start`, or choose another superlink_port",
            )
        )
    end_leftovers(folder)
    folder.flower_home.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "fedtune.coordinator.superlink_process"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    if insecure:
        command += ["--insecure"]
    else:
        command += ["--ssl-ca-certfile", str(folder.authority), "--ssl-certfile", str(folder.certificate)]
        command += ["--ssl-keyfile", str(folder.key), "--enable-supernode-auth"]
    command += ["--database", str(folder.database), "--disable-runtime-dependency-installation"]
    command += ["--log-file", str(folder.state / LOG), "--log-rotation-interval-hours", "24"]
    command += ["--log-rotation-backup-count", str(_KEPT_LOGS)]
    env = environment(folder.flower_home) | {HOME_VARIABLE: str(folder.path.resolve())}
    env |= {INSECURE_VARIABLE: "1"} if insecure else {}
    # What it writes on its output is in its log as well; what breaks before that is kept here.
    output = folder.state / "superlink.out"
    with output.open("wb") as file:
        process = spawn(command, env, file)
    deadline = time.monotonic() + START_SECONDS
    while not listens(port):
        if process.poll() is not None or time.monotonic() > deadline or not alive():
            end_process(process)
            raise MachineError(
                Problem(
                    code="FT664",
                    what="Flower's SuperLink did not start" + _last_line(output),
                    where=str(output),
                    fix="read the end of that file, and of superlink.log beside it",
                )
            )
        time.sleep(0.1)
    return process


def end_process(process: subprocess.Popen[bytes], *, seconds: float = 15.0) -> None:
    """Stop a child: kindly, and by force if that takes too long."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_leftovers(folder: CoordinatorFolder, *, seconds: float = 5.0) -> None:
    """Stop what a SuperLink of this coordinator has started and that outlived it: Flower detaches it.

    Such a ServerApp waits for its SuperLink for minutes, and holds its run's folder. It is known by the
    folder in its environment. Where there is no ``/proc``, it is left to end by itself.
    """
    for stop in (signal.SIGTERM, signal.SIGKILL):
        for process in _started_for(folder):
            with suppress(ProcessLookupError):
                os.kill(process, stop)
        deadline = time.monotonic() + seconds
        while _started_for(folder) and time.monotonic() < deadline:
            time.sleep(0.1)


def _started_for(folder: CoordinatorFolder) -> list[int]:
    mark = f"{HOME_VARIABLE}={folder.path.resolve()}".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # Not ours to read, or gone meanwhile; a process that has ended has no environment.
        with suppress(OSError):
            if mark in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return found


def _last_line(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    last = next((line for line in reversed(lines) if line), "")
    return f": {last[:200]}" if last else ""


def has_executor(superlink: int) -> bool:
    """Whether a SuperLink has the child that starts ServerApps; it dies of an error, and Flower lets it lie.

    Args:
        superlink: Its process.
    """
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(superlink).children():
            with suppress(psutil.NoSuchProcess):
                alive = child.status() != psutil.STATUS_ZOMBIE
                if alive and any("flower-superexec" in part for part in child.cmdline()[:3]):
                    return True
    return False
