"""What a round asks of a site, from the configuration alone: a server sends it, a site can check it."""

from __future__ import annotations

from fedtune.aggregation.base import Aggregator
from fedtune.config.schema import Config
from fedtune.federation.wire import TrainRequest

__all__ = ["train_request"]


def train_request(config: Config, method: Aggregator, round_number: int) -> TrainRequest:
    """Return the request of a round: its factors, and where it stands on the learning-rate schedule."""
    steps = config.training.steps_per_round
    return TrainRequest(
        round=round_number,
        factors=method.factors(round_number),
        first_step=(round_number - 1) * steps,
        total_steps=config.federation.rounds * steps,
    )
