"""Numbers that follow from a configuration alone."""

from __future__ import annotations

from fedtune.config.schema import Config

__all__ = ["clip_bound"]


def clip_bound(config: Config) -> float:
    """Return the public bound of an update's entries, in the unit of the parameters."""
    if config.secagg.clip_bound is not None:
        return config.secagg.clip_bound
    return config.training.learning_rate * config.training.steps_per_round
