"""Who is training on which adapter, where sites train at their own pace: the state that a step leaves behind.

In a simulation it is an event queue as well: each training ends at a virtual time, and who ends first comes
first, by name where several end together.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

__all__ = ["Flight", "Training", "parse_flight"]

_STRICT = ConfigDict(extra="forbid", strict=True)
Whole = Annotated[int, Field(ge=0)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Training:
    """One training of one site.

    Attributes:
        site: The site's name.
        number: Which of the site's trainings it is, from 1.
        version: Steps of the server before the adapter that it began with.
        end: Virtual microseconds at which it ends; 0 in a deployment, where nobody knows.
    """

    site: str
    number: Annotated[int, Field(ge=1)]
    version: Whole
    end: Whole


@dataclass(kw_only=True)
class Flight:
    """All trainings that have begun and not ended.

    Guarantees:
        * A site has one training at a time; its numbers are 1, 2, 3, … without a gap.
        * A training ends once: after `ended` or `failed` nothing of it can count.
        * Time never goes back.

    Attributes:
        now: Virtual microseconds.
        done: How many trainings of each site have ended, by name.
        trainings: Those that have not, by name of the site.
    """

    now: int = 0
    done: dict[str, int] = field(default_factory=dict)
    trainings: dict[str, Training] = field(default_factory=dict)

    def begin(self, site: str, version: int, *, microseconds: int = 0) -> Training:
        """Let a site begin its next training.

        Args:
            site: A site without a training.
            version: Of the adapter that it begins with.
            microseconds: How long it will take, in virtual time.

        Raises:
            ValueError: The site is training.
        """
        if site in self.trainings:
            raise ValueError(f"{site} is training, and begins nothing else")
        number = self.done.get(site, 0) + 1
        training = Training(site=site, number=number, version=version, end=self.now + microseconds)
        self.trainings[site] = training
        return training

    def ended(self, training: Training) -> None:
        """Record that a training ended, whatever becomes of its update: the site's next one is another."""
        self.failed(training)
        self.done[training.site] = training.number

    def failed(self, training: Training) -> None:
        """Record that a training failed: the site's next one is the same again.

        Raises:
            ValueError: It is not under way.
        """
        if self.trainings.get(training.site) != training:
            raise ValueError(f"training {training.number} of {training.site} is not under way")
        del self.trainings[training.site]

    def idle(self, sites: Collection[str]) -> tuple[str, ...]:
        """Return which of these sites have no training, by name."""
        return tuple(sorted(set(sites) - self.trainings.keys()))

    def due_now(self) -> bool:
        """Return whether somebody is done at this very instant of virtual time."""
        return any(training.end <= self.now for training in self.trainings.values())

    def next(self, room: int) -> tuple[Training, ...]:
        """Let virtual time pass until somebody is done.

        Args:
            room: How many to return at most, at least 1.

        Returns:
            Those who are done then, all at one instant, in the order of their names; they are still among
            the trainings. Empty where nobody trains.
        """
        if not self.trainings:
            return ()
        self.now = max(self.now, min(training.end for training in self.trainings.values()))
        done = (training for training in self.trainings.values() if training.end <= self.now)
        return tuple(sorted(done, key=lambda training: training.site)[:room])

    def to_json(self) -> str:
        """Return the state as JSON."""
        underway = [asdict(self.trainings[site]) for site in sorted(self.trainings)]
        return json.dumps({"v": 1, "now": self.now, "done": self.done, "trainings": underway})


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Stored:
    v: Literal[1]
    now: Whole
    done: dict[str, Whole]
    trainings: tuple[Training, ...]


def parse_flight(text: str) -> Flight:
    """Read a state back.

    Raises:
        ValueError: It is damaged: no such JSON, or a site trains twice, or out of its turn.
    """
    stored = TypeAdapter(_Stored).validate_json(text)
    flight = Flight(
        now=stored.now,
        done=dict(stored.done),
        trainings={training.site: training for training in stored.trainings},
    )
    if len(flight.trainings) < len(stored.trainings):
        raise ValueError("a site trains twice at a time")
    for training in stored.trainings:
        if training.number != flight.done.get(training.site, 0) + 1:
            raise ValueError(f"training {training.number} of {training.site} is out of its turn")
    return flight
