"""What the dry round of a preflight changes in a run's configuration."""

from __future__ import annotations

from dataclasses import replace

from fedtune.config.schema import Config
from fedtune.data.seeds import derive_seed

__all__ = ["dry_config"]


def dry_config(config: Config, *, name: str, timeout_seconds: float) -> Config:
    """Return the configuration of a dry round: the run's own, but for one round of one step.

    It has a name and a seed of its own. With the run's seed, sites would make updates that they have made
    before or will make in the run, and under secure aggregation each may be opened once only. All sites are
    asked, at the pace of rounds, and as few as secure aggregation allows make the round, so that it says how
    each of them did.

    Args:
        config: The run's.
        name: Of the dry round.
        timeout_seconds: How long it waits for sites that have not approved it.
    """
    federation = replace(
        config.federation,
        rounds=1,
        clients_per_round=None,
        min_replies=config.secagg.k_min if config.secagg.enabled else 1,
        round_attempts=1,
        join_timeout_seconds=timeout_seconds,
    )
    return replace(
        config,
        name=name,
        seed=derive_seed(config.seed, "preflight", name),
        resume=False,
        baselines=(),
        training=replace(config.training, steps_per_round=1),
        federation=federation,
        asynchronous=replace(config.asynchronous, name="none"),
    )
