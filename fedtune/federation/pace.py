"""How sites that train at their own pace are asked and heard: by a virtual clock, or as they really are."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from flwr.app import Message, RecordDict

from fedtune.config.schema import Config
from fedtune.errors import UpdateError
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.flight import Flight, Training
from fedtune.federation.letters import Letters
from fedtune.federation.speed import seconds, training_microseconds

__all__ = ["DeployedPace", "Pace", "Step", "VirtualPace"]


class Step(Protocol):
    """What a pace has to know of the step of the server that is being made."""

    @property
    def number(self) -> int:
        """Which step it is, from 1."""

    @property
    def room(self) -> int:
        """How many updates are still missing."""

    def willing(self) -> tuple[str, ...]:
        """Return the sites that may be asked to train, whether they do so or not."""

    def request(self, training: Training) -> RecordDict:
        """Return what a site is sent for a training."""

    def take(self, training: Training, message: Message) -> None:
        """Look at a reply: its training has then ended, or failed and is still under way.

        Raises:
            UpdateError: It is no update that could count.
        """

    def failed(self, training: Training) -> None:
        """Count a failure: the site may be asked again, or not any more in this step."""


class Pace(Protocol):
    """Asks who is idle, and hears who is done."""

    def advance(self, step: Step, flight: Flight) -> None:
        """Do the next thing there is to do, of which no more than ``step.room`` updates can come."""

    def let_go(self, site: str) -> None:
        """Forget what a site was asked."""

    def resumed(self, flight: Flight) -> Flight:
        """Return what is left of a flight after the server was away."""

    def time(self, flight: Flight) -> float | None:
        """Return the virtual time in seconds; None where there is none."""


@dataclass(kw_only=True)
class VirtualPace:
    """Virtual sites of one machine: each trains when its virtual time has come, one after another.

    Guarantees:
        * Nothing depends on how fast the machine is: the same seed gives the same bits.
        * All who are done at one instant are heard, by name, before anyone begins again.

    Attributes:
        sites: The way to them.
        config: The whole configuration.
    """

    sites: Dialogue
    config: Config

    def advance(self, step: Step, flight: Flight) -> None:
        if not flight.due_now():
            for site in flight.idle(step.willing()):
                took = training_microseconds(self.config, site)
                flight.begin(site, step.number - 1, microseconds=took)
        due = {training.site: training for training in flight.next(step.room)}
        contents = {site: step.request(training) for site, training in due.items()}
        self.sites.exchange("train", step.number, contents, lambda name, reply: step.take(due[name], reply))
        for training in due.values():
            if flight.trainings.get(training.site) == training:
                step.failed(training)

    def let_go(self, site: str) -> None:
        return

    def resumed(self, flight: Flight) -> Flight:
        return flight

    def time(self, flight: Flight) -> float | None:
        return seconds(flight.now)


@dataclass(kw_only=True)
class DeployedPace:
    """Sites of a deployment: who is idle is asked, and replies are looked for until their deadline.

    Replies that are there at one look are heard before anyone is asked again.

    Attributes:
        sites: The way to them.
        letters: What was asked and not answered.
        poll_seconds: Between two looks.
        sleep: Waits for some seconds.
    """

    sites: Dialogue
    letters: Letters
    poll_seconds: float
    sleep: Callable[[float], None] = time.sleep

    def advance(self, step: Step, flight: Flight) -> None:
        heard = False
        for site, message in self.letters.replies():
            heard = True
            self._hear(step, flight, flight.trainings[site], message)
            if step.room == 0:
                return
        if heard:
            return
        for site in self.letters.overdue():
            what = f"no reply within {self.letters.timeout_seconds:g} s"
            self.sites.fail("train", step.number, site, "FT606", what)
            step.failed(flight.trainings[site])
        for site in flight.idle(step.willing()):
            training = flight.begin(site, step.number - 1)
            if not self.letters.send("train", site, self.sites.nodes[site], step.request(training)):
                self.sites.fail("train", step.number, site, "FT605", "Flower did not take the message")
                step.failed(training)
        self.sleep(self.poll_seconds)

    def _hear(self, step: Step, flight: Flight, training: Training, message: Message) -> None:
        try:
            step.take(training, message)
        except UpdateError as error:
            problem = error.problems[0]
            self.sites.fail("train", step.number, training.site, problem.code, problem.what)
        if flight.trainings.get(training.site) == training:
            step.failed(training)

    def let_go(self, site: str) -> None:
        self.letters.forget(site)

    def resumed(self, flight: Flight) -> Flight:
        # What was under way can be heard no more: its sites are asked for the same trainings again.
        return Flight(done=flight.done)

    def time(self, flight: Flight) -> float | None:
        return None
