"""``fedtune client start``: the site's Flower node, and this process as its executor.

The base model is loaded once, rows are read once, and secrets live in this process's memory alone. The
daemon can be killed at any instant: what it must not forget is on the disk before it acts.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import SysLogHandler

import fedtune
from fedtune.errors import FedtuneError, MachineError, Problem
from fedtune.federation.parcels import through_parcels
from fedtune.keys.joining import Connection, read_connection
from fedtune.observability.disk import disk_errors
from fedtune.observability.lock import only_one
from fedtune.secagg.identity import Identity
from fedtune.site.accepted import AcceptedLog
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
from fedtune.site.tidying import forget_old_runs

__all__ = ["Client"]

LOOK_SECONDS = 1.0
STOP_SECONDS = 90.0
"""How long a message that is being handled may take to end: a training ends with its next step."""

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
        """Answer the coordinator until ``stop`` is set; a training ends with its next step then.

        Raises:
            MachineError: FT684, a record of the site is damaged; FT685, the Flower node cannot be started;
                FT688, another client serves this folder; FT830 to FT832, the audit log cannot be written.
            FedtuneError: A file of the folder cannot be used, or the address of health cannot be bound.
        """
        with disk_errors(self.folder.state, kept="nothing was started", again="start again"):
            self.folder.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.folder.state.chmod(0o700)  # an operator's command may have made it first
        state = SiteState(
            version=fedtune.__version__, site=self.connection.site, federation=self.connection.federation
        )
        with ExitStack() as stack:
            stack.enter_context(only_one(self.folder.lock, self._taken))
            audit = self._audit(stack)
            audit.append(SiteStarted(version=fedtune.__version__, policy=self.policy.sha256))
            stack.push(_writes_the_end(audit))
            stack.callback(state.stop)
            self._tidy()
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
                stopping=stop.is_set,
            )
            self._answer(desk, state, stop)

    def _answer(self, desk: Desk, state: SiteState, stop: threading.Event) -> None:
        """Keep a Flower node running, and be its executor."""
        wait, failing = FIRST_WAIT_SECONDS, 0
        while not stop.is_set():
            began, ran = time.monotonic(), False
            try:
                node = self._start_node(stop)
                ran = True
                logger.info("the site's Flower node connects to %s", self.connection.server)
                try:
                    self._execute(desk, state, node, stop)
                finally:
                    end_node(node)
                why = f"it ended with {node.process.returncode}: {node.last_words()}"
            except MachineError as error:
                # The first start tells whoever started the client; a later one may find its port taken.
                if stop.is_set():
                    return
                if ran or not failing:
                    raise
                why = error.problems[0].what
            if stop.is_set():
                return
            if time.monotonic() - began > LONGEST_WAIT_SECONDS:
                wait, failing = FIRST_WAIT_SECONDS, 0
            failing += 1
            state.trouble("FT685")
            state.set_connected(False)
            logger.warning(
                "the site's Flower node failed, time %d in a row, and is started again in %g s: %s",
                failing,
                wait,
                why,
            )
            stop.wait(wait)
            wait = min(LONGEST_WAIT_SECONDS, wait * 2)

    def _start_node(self, stop: threading.Event) -> Node:
        return start_node(
            self.folder,
            server=self.connection.server,
            insecure=self.insecure,
            port=self.settings.node_port,
            alive=lambda: not stop.is_set(),
        )

    def _execute(self, desk: Desk, state: SiteState, node: Node, stop: threading.Event) -> None:
        """Be the executor until the node ends or this process is to stop."""
        ended = threading.Event()
        answer = through_parcels(desk.answer)
        executor = Executor(answer, runtime_address=node.address, auth_secret=node.secret)

        def execute() -> None:
            try:
                executor.run(ended)
            finally:
                ended.set()

        # Training runs in a thread, so that this one sees a signal, and a node that ended, at once.
        worker = threading.Thread(target=execute, name="executor", daemon=True)
        with closing(executor):
            worker.start()
            connected = False
            try:
                while not (stop.is_set() or ended.is_set()) and node.process.poll() is None:
                    state.set_paused(self._stands_aside(state))
                    connected = connected or _has_connected(node)
                    state.set_connected(connected)
                    stop.wait(LOOK_SECONDS)
            finally:
                ended.set()
                end_node(node)  # then whatever the executor waits for is refused at once
                worker.join(timeout=STOP_SECONDS)
                if worker.is_alive():
                    logger.warning("a message is given up: it did not end within %g s", STOP_SECONDS)

    def _stands_aside(self, state: SiteState) -> bool:
        """Whether the site takes part in nothing; with a damaged record it does not either."""
        try:
            return read_standing(self.folder.standing).state != "open"
        except MachineError as error:
            state.trouble(error.problems[0].code)
            return True

    def _tidy(self) -> None:
        """Forget what is long over; nobody else has the folder now."""
        now = datetime.now(UTC)
        AcceptedLog(self.folder.accepted).compact(now)
        forget_old_runs(self.folder.runs, now)

    def _audit(self, stack: ExitStack) -> AuditLog:
        on_head = None
        if self.settings.syslog is not None:
            host, _, port = self.settings.syslog.rpartition(":")
            handler = SysLogHandler(address=(host.strip("[]"), int(port)))
            stack.callback(handler.close)
            on_head = heads_to_syslog(handler, name=self.connection.site)
        return AuditLog(self.folder.audit_log, Identity.load(self.folder.audit_key), on_head=on_head)

    @property
    def _taken(self) -> Problem:
        return Problem(
            code="FT688",
            what="another client serves this folder",
            where=str(self.folder.path),
            fix="use that one, or stop it: fedtune client stop FOLDER",
        )


def _writes_the_end(audit: AuditLog) -> Callable[[type[BaseException] | None, object, object], None]:
    """Return an exit that writes down how the client ended."""

    def write(kind: type[BaseException] | None, error: object, _: object) -> None:
        codes = [each.code for each in error.problems] if isinstance(error, FedtuneError) else []
        name = "" if kind is None else kind.__name__
        reason = f"the client ended with {' '.join(codes) or name}" if name else "the client ended in order"
        audit.append(SiteStopped(reason=reason))

    return write


def _is_loopback(server: str) -> bool:
    return server.rpartition(":")[0].strip("[]") in ("127.0.0.1", "::1", "localhost")


def _has_connected(node: Node) -> bool:
    # The node says so once; whether the line still stands is for the coordinator's status.
    return "SuperNode ID:" in node.words()
