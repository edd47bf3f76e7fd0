"""``fedtune estimate``: what a configuration will take, before any weights are read."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from fedtune.commands.reporting import print_json, say
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.observability import wording

if TYPE_CHECKING:
    from fedtune.models.estimate import Estimate

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Estimate memory and traffic.

    Returns:
        0.

    Raises:
        ModelError: The architecture or the target list does not fit.
    """
    config = compose(arguments.overrides)

    from fedtune.models.estimate import estimate  # noqa: PLC0415  # seconds, after the overrides are right

    found = estimate(config)
    if arguments.json:
        totals = {"training_mib": found.training_mib, "total_mib": found.total_mib}
        print_json(dataclasses.asdict(found) | totals)
        return 0
    for line in _lines(config, found):
        say(line)
    return 0


def _lines(config: Config, found: Estimate) -> list[str]:
    memory = {
        "parameters": found.parameters_mib,
        "gradients": found.gradients_mib,
        "optimizer states": found.optimizer_states_mib,
        "activations": found.activations_mib,
        "libraries": found.libraries_mib,
        "in all": found.total_mib,
    }
    loading = found.loading_mib > found.training_mib
    processes = config.backend.actors if config.backend.name == "ray" else 1
    return [
        f"{config.model.name}, {config.model.quantization}, {found.compute_dtype} on {found.device}",
        f"{wording.count(found.base_parameters)} parameters, and {wording.count(found.adapter_parameters)} "
        "of an adapter",
        "",
        "memory of one training process" + (f", of which there are {processes}" if processes > 1 else ""),
        *(f"  {name:<17} {wording.mebibytes(value):>10}" for name, value in memory.items()),
        *([f"  loading takes more than training: {wording.mebibytes(found.loading_mib)}"] if loading else []),
        "",
        f"traffic of a client in a round: {wording.bytes_(found.uplink_bytes)} up, "
        f"{wording.bytes_(found.downlink_bytes)} down",
        f"in {wording.rounds_(config.federation.rounds)}: "
        f"{wording.bytes_(found.uplink_bytes * config.federation.rounds)} up, "
        f"{wording.bytes_(found.downlink_bytes * config.federation.rounds)} down",
    ]
