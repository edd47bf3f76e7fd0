"""The speed of virtual sites, and the clock of rounds that wait for them.

Virtual time is counted in whole microseconds: two sites of one speed are done at the very same time, and the
last bits of a logarithm, which differ between machines, decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fedtune.config.schema import Config
from fedtune.data.seeds import derive_seed
from fedtune.observability.events import Event, RoundFinished

__all__ = ["RoundClock", "seconds", "training_microseconds"]

_MICROSECONDS = 1_000_000


def training_microseconds(config: Config, site: str) -> int:
    """Return how long a site takes for one training of ``training.steps_per_round`` steps.

    A site that ``speed.sites`` does not name takes ``m exp(sigma z)`` for a step, with m the median and z
    standard normal, drawn from the run's seed and the site's name: other sites change nothing.

    Args:
        config: The whole configuration.
        site: The site's name.

    Returns:
        Virtual microseconds, at least 1 for a step.
    """
    speed = config.speed
    a_step = speed.sites.get(site)
    if a_step is None:
        stream = np.random.Generator(np.random.PCG64(derive_seed(config.seed, "speed", site)))
        a_step = speed.median_seconds_per_step * float(np.exp(speed.sigma * stream.standard_normal()))
    return config.training.steps_per_round * max(1, round(a_step * _MICROSECONDS))


def seconds(microseconds: int) -> float:
    """Return virtual microseconds as seconds."""
    return microseconds / _MICROSECONDS


class RoundClock:
    """The virtual clock of rounds: each lasts as long as the slowest site that trained in it.

    Traffic, aggregation and evaluation take no virtual time.

    Args:
        config: The whole configuration; without a speed model there is no virtual time.
        before: Events of the run's earlier rounds.
    """

    def __init__(self, config: Config, before: Iterable[Event]) -> None:
        self._config = config
        reached = [event.virtual_seconds or 0.0 for event in before if isinstance(event, RoundFinished)]
        self._now = round(max(reached, default=0.0) * _MICROSECONDS)
        self._slowest = 0

    def trained(self, site: str) -> None:
        """Take into account that a site has trained in the round."""
        if self._config.speed.name != "none":
            self._slowest = max(self._slowest, training_microseconds(self._config, site))

    def finished(self) -> float | None:
        """Return at what virtual time the round was over, in seconds; the next one begins then."""
        if self._config.speed.name == "none":
            return None
        self._now, self._slowest = self._now + self._slowest, 0
        return seconds(self._now)
