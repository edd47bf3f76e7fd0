"""One wanted run and Flower's sessions of it: submitted, watched, and started again when it was killed."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

import fedtune
from fedtune.config.wire import config_to_json
from fedtune.coordinator.control import Control, FlowerRun
from fedtune.coordinator.status import ENDED, RunState, RunStatus
from fedtune.coordinator.wanted import WantedRun
from fedtune.errors import RunError
from fedtune.federation.bundle import installed_bundle
from fedtune.federation.run_config import CLIENTS_KEY, CONFIG_KEY, SPLIT_KEY, VERSION_KEY
from fedtune.observability.events import Event, RunFinished, read_events

__all__ = ["Submission"]

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 300.0

_NAMED = re.compile(r"FT\d{3}: .*", re.DOTALL)
"""An error of fedtune's own in what Flower says of a session's end."""

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Submission:
    """Drives one run to its end.

    A session that ended by itself has written why into the run's log, or, where it could not begin, has told
    Flower: then the run has ended. Any other was killed, with or without the SuperLink, or interrupted: then
    the run goes on from its last complete round.

    Attributes:
        run: What is wanted.
        folder: The run directory.
        most_restarts: How often it is started again before it is given up.
        clock: Seconds of a clock that never goes back.
    """

    run: WantedRun
    folder: Path
    most_restarts: int
    state: RunState = "waiting"
    reason: str = ""
    restarts: int = 0
    clock: Callable[[], float] = time.monotonic
    _flower_run: int | None = None
    _events_before: int = 0
    _not_before: float = float("-inf")

    @property
    def status(self) -> RunStatus:
        """What is known of it."""
        return RunStatus(
            name=self.run.name,
            state=self.state,
            flower_run=self._flower_run,
            restarts=self.restarts,
            reason=self.reason,
        )

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ENDED

    def lost(self, why: str) -> None:
        """Say that its session is gone, with the SuperLink that ran it."""
        if self.has_ended or self._flower_run is None:
            return
        ended = self._own_ending()
        if ended is None:
            self._again(why)
        else:
            self.state, self.reason = ended

    def advance(self, control: Control, *, sites: int) -> None:
        """Do what can be done now; called every few seconds.

        Args:
            control: Way to the SuperLink.
            sites: How many are enrolled.

        Raises:
            httpx.HTTPError: The SuperLink does not answer.
        """
        if self.has_ended:
            return
        if self._flower_run is None:
            if self.run.stopped:
                self.state, self.reason = "stopped", "stopped by the coordinator before it was running"
            elif self.clock() >= self._not_before and sites:
                self._submit(control, sites)
            return
        if self.run.stopped and self.state != "stopping":
            control.stop_run(self._flower_run)
            self.state = "stopping"
        flower = control.run(self._flower_run)
        if flower is not None and flower.status != "finished":
            return
        ended = self._own_ending() or _refusal(flower)
        if ended is not None:
            self.state, self.reason = ended
        elif self.run.stopped:
            self.state, self.reason = "stopped", "stopped by the coordinator; resume=true goes on"
        else:
            self._again("its process ended without a word" if flower is None else flower.details)

    def _submit(self, control: Control, sites: int) -> None:
        control.stop_all()  # a session whose start was never answered may be there
        bundle = installed_bundle()
        self._events_before = len(self._events())
        values: dict[str, str | int] = {
            CONFIG_KEY: config_to_json(self.run.config),
            CLIENTS_KEY: sites,
            SPLIT_KEY: "",
            VERSION_KEY: fedtune.__version__,
        }
        try:
            self._flower_run = control.start_run(bundle.content, bundle.sha256, values)
        except httpx.HTTPStatusError as error:
            if error.response.status_code >= 500:
                raise
            self._again(f"the SuperLink refused to start it: {error.response.text[:200]}")
            return
        self.state, self.reason = "running", ""
        logger.info("run %s: session %d of Flower's has begun", self.run.name, self._flower_run)

    def _again(self, why: str) -> None:
        self._flower_run = None
        if self.restarts >= self.most_restarts:
            self.state, self.reason = "given_up", f"started {self.restarts + 1} times; the last one: {why}"
            return
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2**self.restarts)
        self.restarts += 1
        self._not_before = self.clock() + wait
        self.state, self.reason = "restarting", why
        logger.warning("run %s is started again in %g s: %s", self.run.name, wait, why)

    def _own_ending(self) -> tuple[RunState, str] | None:
        """Return how the present session says that the run ended; None if it says nothing."""
        events = self._events()
        if len(events) <= self._events_before or not isinstance(last := events[-1], RunFinished):
            return None
        if last.status == "interrupted":
            return None
        return ("completed", "") if last.status == "completed" else ("failed", last.reason or "")

    def _events(self) -> list[Event]:
        try:
            return read_events(self.folder / "rounds.jsonl")
        except RunError:
            return []


def _refusal(flower: FlowerRun | None) -> tuple[RunState, str] | None:
    """Return why a session could not begin, if it said so to Flower."""
    named = None if flower is None else _NAMED.search(flower.details)
    if named is None or named.group().startswith("FT702"):  # a session that is ending holds the folder still
        return None
    return "failed", named.group()
