"""``fedtune server start``: the SuperLink, the gate in front of it, and the run that is wanted.

One loop in the main thread looks every second at what changed: a node key that was enrolled or removed, a
run that is wanted or to be stopped, a child that ended. What it remembers lies in files, so it can be killed
at any instant.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import httpx

import fedtune
from fedtune.coordinator.control import Control
from fedtune.coordinator.folder import CoordinatorFolder
from fedtune.coordinator.gate.server import Gate
from fedtune.coordinator.gate.settings import GateSettings
from fedtune.coordinator.nodes import Enrolled, NodeKeys, enrolled_keys, synchronise
from fedtune.coordinator.notices import RunNotices
from fedtune.coordinator.notify import Notifier
from fedtune.coordinator.notify_expiry import ExpiryWatch
from fedtune.coordinator.settings import ServerSettings, notify_settings
from fedtune.coordinator.status import ServerStatus, SiteStatus, write_status
from fedtune.coordinator.submission import Submission
from fedtune.coordinator.superlink import end_leftovers, end_process, has_executor, start_superlink
from fedtune.coordinator.wanted import WantedRun, WantedRuns
from fedtune.errors import FedtuneError, MachineError, Problem
from fedtune.federation.processes import environment
from fedtune.keys.certificates import utc_now
from fedtune.observability.disk import disk_errors
from fedtune.observability.lock import only_one

__all__ = ["Server"]

LOOK_SECONDS = 1.0
NODES_SECONDS = 5.0
RESTART_SECONDS = 2.0
EXPIRY_SECONDS = 3_600.0
MISSING_SECONDS = 20.0
_MIB = 2**20

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Server:
    """A coordinator's server, for as long as its process lives.

    Attributes:
        folder: The coordinator's.
        settings: As read from it.
        insecure: Without TLS, without node keys and without a gate, on 127.0.0.1 alone.
    """

    folder: CoordinatorFolder
    settings: ServerSettings
    insecure: bool = False
    _control: Control | None = None
    _superlink: subprocess.Popen[bytes] | None = None
    _submission: Submission | None = None
    _enrolled: list[Enrolled] = field(default_factory=list)
    _keys: NodeKeys | None = None
    _looked: float = 0.0
    _missing_since: float | None = None
    _notifier: Notifier | None = None
    _notices: RunNotices | None = None
    _is_clean: bool = False
    _said: frozenset[str] = frozenset()

    def serve(self, stop: threading.Event) -> None:
        """Serve until ``stop`` is set; then runs are interrupted, and go on when the server starts again.

        Raises:
            MachineError: FT667, another server serves this folder; FT664, the SuperLink did not start.
            FedtuneError: The gate cannot listen, or a file of the folder cannot be used.
        """
        with disk_errors(self.folder.state, kept="nothing was started"):
            self.folder.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with only_one(self.folder.lock, self._taken):
            os.environ.update(environment(self.folder.flower_home))  # for calls on loopback, past any proxy
            try:
                self._start_superlink(stop)
                if stop.is_set():
                    return
                with ExitStack() as stack:
                    self._notifier = stack.enter_context(Notifier(notify_settings(self.settings)))
                    expiry = ExpiryWatch(
                        self.folder.path, federation=self.settings.federation, give=self._notifier.give
                    )
                    look_at_expiry = 0.0
                    gate = None if self.insecure else stack.enter_context(self._gate())
                    while not stop.is_set():
                        if gate is not None:
                            gate.check()
                        self._look(stop)
                        if time.monotonic() >= look_at_expiry:
                            expiry.look(utc_now())
                            look_at_expiry = time.monotonic() + EXPIRY_SECONDS
                        stop.wait(LOOK_SECONDS)
            finally:
                self._end()

    @property
    def _port(self) -> int:
        """Where the SuperLink listens on 127.0.0.1: behind the gate, or where sites connect without one."""
        if not self.insecure:
            return self.settings.superlink_port
        host, _, port = self.settings.address.rpartition(":")
        if host not in ("127.0.0.1", "localhost"):
            raise MachineError(
                Problem(
                    code="FT687",
                    what=f"--insecure speaks without TLS, and sites connect to {self.settings.address}",
                    where="--insecure",
                    fix="leave --insecure out, or make a coordinator with --ip 127.0.0.1 for a trial",
                )
            )
        return int(port)

    def _gate(self) -> Gate:
        limits = self.settings.gate
        return Gate(
            GateSettings(
                listen=(self.settings.listen,),
                superlink=f"127.0.0.1:{self.settings.superlink_port}",
                certificate=self.folder.certificate,
                key=self.folder.key,
                authority=self.folder.authority,
                traffic_file=self.folder.traffic,
                max_body_bytes=limits.body_mib * _MIB,
                requests_per_second=limits.requests_per_second,
                burst_requests=limits.burst,
                max_connections=limits.connections,
            )
        )

    def _look(self, stop: threading.Event) -> None:
        """Do what can be done now; what fails because the SuperLink is away is done later."""
        if self._superlink is not None and self._superlink.poll() is None and not self._starts_apps():
            logger.error("the SuperLink can start no ServerApp any more, and is ended")
            end_process(self._superlink)
        if self._superlink is not None and self._superlink.poll() is not None:
            logger.error("the SuperLink ended with %d and is started again", self._superlink.returncode)
            if self._submission is not None:
                self._submission.lost("the SuperLink ended")
            stop.wait(RESTART_SECONDS)
            self._start_superlink(stop)
        if self._control is None:
            return
        said = []
        try:
            if not self._is_clean:
                # No run outlives the SuperLink that ran it, but its database says otherwise.
                self._control.stop_all()
                self._is_clean = True
            said += self._follow_nodes(self._control)
            said += self._follow_runs(self._control)
        except httpx.HTTPError as error:
            said.append(f"the SuperLink does not answer: {type(error).__name__}")
        except FedtuneError as error:
            said.append(str(error))
        self._say_once(said)
        self._write_status()

    def _say_once(self, said: list[str]) -> None:
        """Log what is wrong when it begins, not every second."""
        for each in dict.fromkeys(said):
            if each not in self._said:
                logger.error("%s", each)
        self._said = frozenset(said)

    def _follow_nodes(self, control: Control) -> list[str]:
        """Let in who is enrolled; returns what is wrong with files."""
        if self.insecure:  # nodes register themselves, and say who they are when they are greeted
            return []
        keys = enrolled_keys(self.folder.nodes)
        said = [f"a node key is damaged, and its node left as it was: {why}" for why in keys.damaged.values()]
        if keys == self._keys and time.monotonic() - self._looked < NODES_SECONDS:
            return said
        before = {each.site: each.node.online for each in self._enrolled}
        self._enrolled = synchronise(control, keys, self.folder.names)
        self._keys, self._looked = keys, time.monotonic()
        for each in self._enrolled:
            if before.get(each.site, False) != each.node.online:
                logger.info("%s is %s", each.site, "connected" if each.node.online else "no longer connected")
        return said

    def _follow_runs(self, control: Control) -> list[str]:
        """Drive the run that is wanted; returns what is wrong with files."""
        wanted = WantedRuns(self.folder.wanted)
        found, problems = wanted.scan()
        runs, said = {run.name: run for run in found}, [str(each) for each in problems]
        current = self._submission
        if current is None or current.has_ended:
            if not runs:
                return said
            current = self._submission = self._submitted(next(iter(runs.values())))
        if current.run.name in runs:
            current.run = runs[current.run.name]
        sites = len(enrolled_keys(self.folder.nodes).by_site) if self.insecure else len(self._enrolled)
        current.advance(control, sites=sites)
        if self._notices is not None:
            self._notices.look()
        if current.has_ended:
            if self._notices is not None:
                self._notices.ended(current.status)
            self._write_status()  # who sees that the run is no longer wanted finds how it ended
            wanted.drop(current.run.name)
            logger.info("run %s: %s %s", current.run.name, current.state, current.reason)
        return said

    def _submitted(self, run: WantedRun) -> Submission:
        self._notices = None
        if self._notifier is not None and run.preflight is None:
            self._notices = RunNotices(
                self.folder.runs / run.name / "rounds.jsonl",
                federation=self.settings.federation,
                run=run.name,
                give=self._notifier.give,
            )
        return Submission(
            run=run,
            folder=self.folder.runs / run.name,
            most_restarts=self.settings.resubmissions,
        )

    def _start_superlink(self, stop: threading.Event) -> None:
        self._close_control()
        self._keys, self._is_clean = None, False
        try:
            self._superlink = start_superlink(
                self.folder, self._port, insecure=self.insecure, alive=lambda: not stop.is_set()
            )
        except MachineError:
            if stop.is_set():
                return
            raise
        self._control = Control(self._port, None if self.insecure else self.folder.authority)

    def _starts_apps(self) -> bool:
        """Whether the process that starts ServerApps is there, or was missing for a few seconds only."""
        if self._superlink is None or has_executor(self._superlink.pid):
            self._missing_since = None
            return True
        if self._missing_since is None:
            self._missing_since = time.monotonic()
        return time.monotonic() - self._missing_since < MISSING_SECONDS

    def _write_status(self) -> None:
        with suppress(OSError):  # a full disk is reported by what matters more
            write_status(
                self.folder.status,
                ServerStatus(
                    time=time.time(),
                    pid=os.getpid(),
                    version=fedtune.__version__,
                    federation=self.settings.federation,
                    listen=(self.settings.listen,),
                    sites=tuple(
                        SiteStatus(
                            site=each.site,
                            node_id=each.node.node_id,
                            online=each.node.online,
                            last_activated=each.node.last_activated,
                        )
                        for each in self._enrolled
                    ),
                    run=None if self._submission is None else self._submission.status,
                ),
            )

    def _close_control(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None

    def _end(self) -> None:
        self._close_control()
        if self._superlink is not None:
            end_process(self._superlink)
            end_leftovers(self.folder)

    @property
    def _taken(self) -> Problem:
        return Problem(
            code="FT667",
            what="another server serves this folder",
            where=str(self.folder.path),
            fix="use that one, or stop it: fedtune server stop FOLDER",
        )
