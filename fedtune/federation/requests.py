"""What a round asks of a site, from the configuration alone: a server sends it, a site can check it."""

from __future__ import annotations

from fedtune.aggregation.base import Aggregator
from fedtune.config.derived import rounds_a_training
from fedtune.config.methods import method
from fedtune.config.schema import Config
from fedtune.federation.wire import TrainRequest

__all__ = ["fine_tuning_request", "own_pace_request", "train_request"]


def train_request(config: Config, method: Aggregator, round_number: int) -> TrainRequest:
    """Return the request of a round: its factors, and where it stands on the learning-rate schedule.

    A round that fits to what the one before it trained stands where that one stands.
    """
    steps, every = config.training.steps_per_round, rounds_a_training(config)
    return TrainRequest(
        round=round_number,
        factors=method.factors(round_number),
        first_step=(round_number - 1) // every * steps,
        total_steps=-(-config.federation.rounds // every) * steps,
    )


def own_pace_request(config: Config, method: Aggregator, *, training: int, version: int) -> TrainRequest:
    """Return the request to a site that trains at its own pace.

    Its round is the site's own count: that of its rows, its dropout and its moments. Where it stands on the
    learning-rate schedule is the server's, so that all sites are there at the same time.

    Args:
        config: The whole configuration.
        method: The aggregation method.
        training: Which of the site's trainings it is, from 1.
        version: Steps of the server before the adapter that goes with it.
    """
    steps = config.training.steps_per_round
    return TrainRequest(
        round=training,
        factors=method.factors(1),
        first_step=version * steps,
        total_steps=config.federation.rounds * steps,
    )


def fine_tuning_request(config: Config) -> TrainRequest:
    """Return the request of the sites' own steps after the last round, on a schedule of their own."""
    return TrainRequest(
        round=config.federation.rounds + 1,
        factors=method(config.aggregation.method).trained,
        first_step=0,
        total_steps=config.personal.steps,
    )
