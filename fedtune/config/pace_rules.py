"""What sites that train at their own pace, or by a virtual clock, do not go together with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedtune.config.aggregation_rules import Finding
from fedtune.config.methods import METHODS, method
from fedtune.config.schema import Config
from fedtune.config.validate import shown

__all__ = ["PACE_RULES", "asynchronous_findings"]


def asynchronous_findings(config: Config) -> Iterator[Finding]:
    """Say what keeps a configuration from FedBuff; nothing where it does not ask for it."""
    if config.asynchronous.name == "none":
        return
    chosen = config.aggregation.method
    why_not = method(chosen).why_not_asynchronous
    if why_not is not None:
        possible = [name for name, known in METHODS.items() if known.why_not_asynchronous is None]
        yield (
            f"aggregation.method={shown(chosen)} {why_not}",
            "asynchronous.name, aggregation.method",
            f"choose one of {', '.join(possible)}, or asynchronous=none",
        )
    if config.secagg.enabled:
        yield (
            "asynchronous=fedbuff weighs each update by when it came, and secure aggregation shows the sum "
            "of a round alone",
            "asynchronous.name, secagg.enabled",
            "set asynchronous=none, with federation.min_replies for sites that are late; or secagg=off",
        )
    if config.defence.name != "none":
        yield (
            f"defence={config.defence.name} compares updates of one adapter, and those of a buffer began at "
            "several",
            "asynchronous.name, defence.name",
            "set defence=none, or asynchronous=none",
        )
    if config.updates.quantization != "none" and config.updates.error_feedback:
        yield (
            "updates.error_feedback adds what rounding left out to the next update, which may count less, or "
            "be refused as too old",
            "asynchronous.name, updates.error_feedback",
            "set updates.error_feedback=false, or asynchronous=none",
        )
    if config.aggregation.error_meter:
        yield (
            "the error meter compares products of one round, and updates of a buffer began at several "
            "adapters",
            "asynchronous.name, aggregation.error_meter",
            "set aggregation.error_meter=false",
        )
    if config.federation.clients_per_round is not None:
        yield (
            f"federation.clients_per_round={config.federation.clients_per_round} draws the sites of a round, "
            "and asynchronous=fedbuff asks each site as soon as it is free",
            "asynchronous.name, federation.clients_per_round",
            "set federation.clients_per_round=null",
        )
    if config.backend.name == "inprocess" and config.speed.name == "none":
        yield (
            "asynchronous=fedbuff has to know when each site is done, and a simulation trains one after "
            "another",
            "asynchronous.name, speed.name",
            "set speed=lognormal, or speed=equal",
        )
    if config.backend.name == "ray":
        yield (
            "asynchronous=fedbuff trains virtual sites in the order of its clock, one after another",
            "asynchronous.name, backend.name",
            "set backend=inprocess",
        )


def _speed(config: Config) -> Iterator[Finding]:
    if config.backend.name == "deployment" and config.speed.name != "none":
        yield (
            "speed is that of a simulation's virtual clock, and sites of a deployment have their own",
            "speed.name, backend.name",
            "set speed=none",
        )
    if config.speed.name == "none" and config.speed.sites:
        yield (
            "speed.sites would be ignored: speed.name is none",
            "speed.sites, speed.name",
            "set speed=lognormal, or speed=equal; or leave speed.sites out",
        )


PACE_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (asynchronous_findings, _speed)
