"""A method whose mean delta is taken robustly, or is not simply added: defences and server optimizers.

deltas -> mean delta (weighted, or by a defence) -> step (as it is, or by an optimizer) -> new adapter
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.carrying import Carried
from fedtune.aggregation.control import ControlledAggregator
from fedtune.aggregation.linear import WeightedMean
from fedtune.aggregation.registry import aggregator
from fedtune.aggregation.robust import RobustMean
from fedtune.aggregation.server_step import moved, server_step
from fedtune.config.derived import secure_clip
from fedtune.config.schema import Config, DefenceConfig, ServerOptimizerConfig
from fedtune.models.adapter import Adapter, Factor
from fedtune.training.delta import Delta

__all__ = ["SteeredAggregator", "SteeredRound", "configured_aggregator"]


def configured_aggregator(config: Config, *, sites: int) -> Aggregator:
    """Return the method of a configuration, with its defence, its server optimizer and control variates.

    Args:
        config: The whole configuration.
        sites: Sites of the federation.

    Raises:
        ConfigError: As `fedtune.aggregation.registry.aggregator`.
    """
    method = aggregator(config.aggregation, clip=secure_clip(config))
    steered = config.defence.name != "none" or config.server_optimizer.name != "none"
    if steered or config.secagg.groups > 1:
        method = SteeredAggregator(
            method=method,
            defence=config.defence,
            optimizer=config.server_optimizer,
            groups=config.secagg.groups,
        )
    return ControlledAggregator(method=method, sites=sites) if config.training.control_variates else method


@dataclass(frozen=True, kw_only=True)
class SteeredAggregator:
    """A linear method with a defence, a server optimizer, or both.

    Attributes:
        method: The method that says which factors are trained.
        defence: How the mean delta is taken.
        optimizer: What becomes of it.
        groups: Fixed groups of sites; with more than one, deltas are medians over them already.
    """

    method: Aggregator
    defence: DefenceConfig
    optimizer: ServerOptimizerConfig
    groups: int = 1

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def exact(self) -> bool:
        return False

    @property
    def label(self) -> str:
        steps = [self.method.label]
        if self.defence.name != "none":
            steps.append(f"the mean taken by {self.defence.name}")
        if self.groups > 1:
            steps.append(f"the median of the means of {self.groups} groups")
        if self.optimizer.name != "none":
            steps.append(f"the step by {self.optimizer.name}")
        return "; ".join(steps) + ": not the mean"

    def factors(self, round: int) -> tuple[Factor, ...]:
        return self.method.factors(round)

    def start(self, global_adapter: Adapter) -> SteeredRound:
        return self.start_from(global_adapter, {})

    def start_from(self, global_adapter: Adapter, carried: Carried) -> SteeredRound:
        return SteeredRound(global_adapter, carried, self.defence, self.optimizer)


class SteeredRound:
    """One round of it.

    Guarantees:
        * Without a defence memory does not grow with the number of clients.
        * State and arithmetic are float64; the adapter is rounded once.
        * ``fedavgm`` with a learning rate of 1 and no momentum gives the weighted mean, bit for bit.
    """

    def __init__(
        self, received: Adapter, carried: Carried, defence: DefenceConfig, optimizer: ServerOptimizerConfig
    ) -> None:
        self._received, self._state, self._optimizer = received, carried, optimizer
        self._mean: WeightedMean | RobustMean = (
            WeightedMean(received) if defence.name == "none" else RobustMean(received, defence)
        )
        self._after: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}

    @property
    def exact(self) -> bool:
        return False

    def add(self, delta: Delta, weight: float) -> None:
        self._mean.add(delta, weight)

    def result(self) -> Adapter:
        steps, self._after = server_step(self._optimizer, self._mean.mean_delta(), self._state)
        return moved(self._received, steps)

    def carried(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        return dict(self._after)
