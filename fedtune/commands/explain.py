"""``fedtune explain``: what a method needs, whether the settings give it, what it costs, what else works."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fedtune.commands.reporting import print_json, report_problems, say
from fedtune.config.compose import judged
from fedtune.config.methods import METHODS, method
from fedtune.config.schema import Config, ModelConfig, PeftConfig
from fedtune.config.solver import Alternative, Requirement, alternatives, noise_requirement, requirements
from fedtune.errors import ConfigError
from fedtune.observability import wording

if TYPE_CHECKING:
    from fedtune.aggregation.costs import Costs
    from fedtune.models.adapter import AdapterSpec

__all__ = ["run"]

_CLIENTS = 10
"""Clients of a round where the configuration does not say."""


def run(arguments: argparse.Namespace) -> int:
    """Explain a configuration that is possible, or why it is not.

    Returns:
        0 for a possible one, else the exit code of a `ConfigError`.

    Raises:
        ConfigError: The overrides are no configuration at all.
        ModelError: The architecture or the target list does not fit.
    """
    overrides, private = _planned(arguments.overrides)
    config, problems = judged(overrides)
    others = alternatives(overrides)
    priced = {each.method: _costs(each.config) for each in others if each.config and not each.problems}
    if arguments.json:
        print_json(_object(config, problems, others, priced, private=private))
    else:
        for line in (
            *_lines(config, private=private),
            *_cost_lines(config, None if problems else _costs(config)),
        ):
            say(line)
        say("\nother methods under these settings")
        for each in others:
            say(f"  {each.method:<13} {_verdict(each, priced.get(each.method))}")
    if problems:
        say()
        report_problems(ConfigError(problems), as_json=False)
        return ConfigError.exit_code
    return 0


def _planned(overrides: Sequence[str]) -> tuple[list[str], bool]:
    """Take ``dp=on`` or ``dp=off`` out: it asks what noise would need, and is no key of a configuration."""
    return [text for text in overrides if text not in {"dp=on", "dp=off"}], "dp=on" in overrides


def _requirements(config: Config, *, private: bool) -> tuple[Requirement, ...]:
    return (*requirements(config), *([noise_requirement(config)] if private else []))


def _costs(config: Config) -> Costs:
    from fedtune.aggregation.costs import costs  # noqa: PLC0415

    return costs(config, _spec(config.model, config.peft), _clients(config))


@lru_cache
def _spec(model: ModelConfig, peft: PeftConfig) -> AdapterSpec:
    from fedtune.models.adapted import adapter_spec  # noqa: PLC0415  # seconds, after the overrides are right

    return adapter_spec(model, peft)


def _clients(config: Config) -> int:
    sites = config.partition.clients or len(config.partition.values) or _CLIENTS
    if config.asynchronous.name != "none":
        return config.asynchronous.buffer
    return min(config.federation.clients_per_round or sites, sites)


def _lines(config: Config, *, private: bool) -> list[str]:
    chosen = config.aggregation.method
    known = method(chosen)
    lines = [
        f"{chosen}: {_travels(config)}",
        f"source: {known.source or 'another package'}",
        f"the new product is the mean of the products: {_exactness(config)}",
        f"optimizers' moments at the sites: {'start anew each round' if known.resets_moments else 'kept'}",
        "",
        f"{'':<18} {'needs':<46} has",
    ]
    for each in _requirements(config, private=private):
        mark = "ok" if each.met else "NO"
        lines.append(f"{mark} {each.about:<15} {each.needs:<46} {each.has}")
    if private:
        suited = ", ".join(name for name, each in METHODS.items() if each.sums_one_factor)
        lines += ["", f"dp is for planning: no run adds noise yet. Sums of one factor: {suited}"]
    return lines


def _travels(config: Config) -> str:
    known = method(config.aggregation.method)
    masked = known.masked if config.secagg.enabled else None
    return known.travels if masked is None else masked.travels


def _exactness(config: Config) -> str:
    known = method(config.aggregation.method)
    if config.defence.name != "none" or config.server_optimizer.name != "none":
        return "no, and it is not meant to be"
    if known.kept:
        return "each site has a model of its own"
    if known.has_side_car and config.aggregation.side_car_rank is not None:
        return f"yes, until the side-car passes rank {config.aggregation.side_car_rank}"
    return "yes, up to rounding" if known.exact else "no"


def _cost_lines(config: Config, found: Costs | None) -> list[str]:
    if found is None:
        return ["", "this cannot work; the reasons and the nearest that can are below"]
    growth = (
        "for any number of clients"
        if found.streams
        else f"for {found.clients} clients, and it grows with them"
    )
    return [
        "",
        f"a round of {found.clients} clients, {config.model.name}, rank {config.peft.rank}"
        + (f"; {found.rounds} rounds a training" if found.rounds > 1 else ""),
        f"  up, a client     {wording.bytes_(found.uplink_bytes)}",
        f"  down, a client   {wording.bytes_(found.downlink_bytes)}",
        f"  server, work     {found.server_flops / 1e9:,.2f} Gflop",
        f"  server, memory   {wording.bytes_(found.server_memory_bytes)} {growth}",
    ]


def _verdict(each: Alternative, found: Costs | None) -> str:
    if found is None:
        return f"no: {each.problems[0].what}"
    exact = "exact" if METHODS[each.method].exact else "inexact"
    each_time = f", in each of {found.rounds} rounds a training" if found.rounds > 1 else ""
    return (
        f"yes: {exact}, {wording.bytes_(found.uplink_bytes)} up, "
        f"{wording.bytes_(found.downlink_bytes)} down, {found.server_flops / 1e9:,.2f} Gflop{each_time}"
    )


def _object(
    config: Config,
    problems: Any,
    others: tuple[Alternative, ...],
    priced: dict[str, Costs],
    *,
    private: bool,
) -> dict[str, Any]:
    known = method(config.aggregation.method)
    return {
        "method": config.aggregation.method,
        "possible": not problems,
        "exact": _exactness(config),
        "travels": _travels(config),
        "source": known.source,
        "moments_kept": not known.resets_moments,
        "requirements": [dataclasses.asdict(each) for each in _requirements(config, private=private)],
        "problems": [dataclasses.asdict(problem) for problem in problems],
        "costs": None if problems else dataclasses.asdict(_costs(config)),
        "methods": [
            {
                "method": each.method,
                "possible": not each.problems,
                "exact": METHODS[each.method].exact,
                "problems": [dataclasses.asdict(problem) for problem in each.problems],
                "costs": dataclasses.asdict(priced[each.method]) if each.method in priced else None,
            }
            for each in others
        ],
    }
