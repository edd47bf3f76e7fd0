"""``fedtune client start``: the site's Flower node, and this process as its executor.

The base model is loaded once, rows are read once, and secrets live in this process's memory alone. The
daemon can be killed at any instant: what it must not forget is on the disk before it acts.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from logging.handlers import SysLogHandler

import fedtune
from fedtune.errors import MachineError, Problem
from fedtune.keys.joining import Connection, read_connection
from fedtune.observability.disk import disk_errors
from fedtune.secagg.identity import Identity
from fedtune.site.approvals import read_standing
from fedtune.site.audit import AuditLog, heads_to_syslog
from fedtune.site.audit_events import SiteStarted, SiteStopped
from fedtune.site.desk import Desk
from fedtune.site.executor import Executor
from fedtune.site.folder import SiteFolder
from fedtune.site.health import serve_health
from fedtune.site.health_state import SiteState
from fedtune.site.node import Node, end_node, start_node
from fedtune.site.policy_file import PolicyFile, load_policy
from fedtune.site.settings import SiteSettings, load_settings

__all__ = ["Client"]

LOOK_SECONDS = 1.0
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 2.0, 60.0

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Client:
    """A site's client, for as long as its process lives.

    Attributes:
        folder: The site's.
        policy: As read from it.
        settings: Likewise.
        connection: Whom it trusts and where it connects.
        insecure: Speak without TLS; for a server on loopback alone.
    """

    folder: SiteFolder
    policy: PolicyFile
    settings: SiteSettings
    connection: Connection
    insecure: bool = False

    @classmethod
    def of(cls, folder: SiteFolder, *, insecure: bool = False) -> Client:
        """Read a site's folder.

        Raises:
            FedtuneError: A file of it cannot be used.
            MachineError: FT686, the site has left the federation; FT687, without TLS beyond this machine.
        """
        connection = read_connection(folder.connection)
        standing = read_standing(folder.standing)
        if standing.state == "left":
            raise MachineError(
                Problem(
                    code="FT686",
                    what=f"this site has left the federation on {standing.time[:10]}",
                    where=str(folder.path),
                    fix="to belong to it again, make a new site's folder with `fedtune client init`",
                )
            )
        if insecure and not _is_loopback(connection.server):
            raise MachineError(
                Problem(
                    code="FT687",
                    what=f"--insecure speaks without TLS, and {connection.server} is not on this machine",
                    where="--insecure",
                    fix="leave --insecure out",
                )
            )
        return cls(
            folder=folder,
            policy=load_policy(folder.policy),
            settings=load_settings(folder.settings),
            connection=connection,
            insecure=insecure,
        )

    def serve(self, stop: threading.Event) -> None:
        """Answer the coordinator until ``stop`` is set; a message that is being handled is finished first.

        Raises:
            MachineError: FT685, the Flower node cannot be started; FT688, another client serves this folder;
                FT830 to FT832, the audit log cannot be written.
            FedtuneError: A file of the folder cannot be used, or the address of health cannot be bound.
        """
        with disk_errors(self.folder.state, kept="nothing was started"):
            self.folder.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        state = SiteState(
            version=fedtune.__version__, site=self.connection.site, federation=self.connection.federation
        )
        with ExitStack() as stack:
            stack.enter_context(self._lock())
            audit = self._audit(stack)
            audit.append(SiteStarted(version=fedtune.__version__, policy=self.policy.sha256))
            stack.callback(audit.append, SiteStopped(reason="the client ended in order"))
            stack.callback(state.stop)
            if self.settings.health is not None:
                host, _, port = self.settings.health.rpartition(":")
                stack.enter_context(serve_health(state, port=int(port), host=host.strip("[]")))
            desk = Desk(
                folder=self.folder,
                name=self.connection.site,
                federation=self.connection.federation,
                coordinator=self.connection.coordinator,
                policy=self.policy.policy,
                settings=self.settings,
                audit=audit,
                state=state,
            )
            self._answer(desk, state, stop)

    def _answer(self, desk: Desk, state: SiteState, stop: threading.Event) -> None:
        """Keep a Flower node running, and be its executor."""
        wait, failing = FIRST_WAIT_SECONDS, 0
        while not stop.is_set():
            node = start_node(
                self.folder,
                server=self.connection.server,
                insecure=self.insecure,
                port=self.settings.node_port,
                alive=lambda: not stop.is_set(),
            )
            began = time.monotonic()
            logger.info("the site's Flower node connects to %s", self.connection.server)
            try:
                self._execute(desk, state, node, stop)
            finally:
                end_node(node)
            if stop.is_set():
                return
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                wait, failing = FIRST_WAIT_SECONDS, 0
            failing += 1
            state.trouble("FT685")
            state.set_connected(False)
            logger.warning(
                "the site's Flower node ended with %s, time %d in a row; it is started again in %g s: %s",
                node.process.returncode,
                failing,
                wait,
                node.last_words(),
            )
            stop.wait(wait)
            wait = min(LONGEST_WAIT_SECONDS, wait * 2)

    def _execute(self, desk: Desk, state: SiteState, node: Node, stop: threading.Event) -> None:
        """Be the executor until the node ends or this process is to stop."""
        ended = threading.Event()
        executor = Executor(desk.answer, runtime_address=node.address, auth_secret=node.secret)

        def execute() -> None:
            try:
                executor.run(ended)
            finally:
                ended.set()

        # Training runs in a thread, so that this one sees a signal, and a node that ended, at once.
        worker = threading.Thread(target=execute, name="executor")
        with closing(executor):
            worker.start()
            while not (stop.is_set() or ended.is_set()) and node.process.poll() is None:
                state.set_paused(read_standing(self.folder.standing).state != "open")
                state.set_connected(_has_connected(node))
                stop.wait(LOOK_SECONDS)
            ended.set()
            worker.join()

    def _audit(self, stack: ExitStack) -> AuditLog:
        on_head = None
        if self.settings.syslog is not None:
            host, _, port = self.settings.syslog.rpartition(":")
            handler = SysLogHandler(address=(host.strip("[]"), int(port)))
            stack.callback(handler.close)
            on_head = heads_to_syslog(handler, name=self.connection.site)
        return AuditLog(self.folder.audit_log, Identity.load(self.folder.audit_key), on_head=on_head)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Keep a second client out: the lock is the kernel's, and ends with this process, however that
        ends.
        """
        with disk_errors(self.folder.lock, kept="nothing was started"):
            lock = os.open(self.folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise MachineError(
                    Problem(
                        code="FT688",
                        what="another client serves this folder",
                        where=str(self.folder.path),
                        fix="use that one, or stop it: fedtune client stop FOLDER",
                    )
                ) from None
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(lock)


def _is_loopback(server: str) -> bool:
    return server.rpartition(":")[0].strip("[]") in ("127.0.0.1", "::1", "localhost")


def _has_connected(node: Node) -> bool:
    # The node says so once; whether the line still stands is for the coordinator's status.
    return "SuperNode ID:" in node.log.read_text(encoding="utf-8", errors="replace")
