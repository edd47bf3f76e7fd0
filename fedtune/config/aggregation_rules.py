"""What an aggregation method, a defence, an optimizer of the server or an attack does not go together with.

`fedtune.config.methods` says what each method is; `fedtune.config.solver` tells it to people.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedtune.config.derived import clients_in_a_round, rounds_a_training
from fedtune.config.methods import METHODS, least_updates, method
from fedtune.config.schema import Config
from fedtune.config.validate import shown

__all__ = ["AGGREGATION_RULES", "Finding"]

Finding = tuple[str, str, str]
"""(what, keys concerned, fix)"""


def _adapter_kind(config: Config) -> Iterator[Finding]:
    chosen, kind = config.aggregation.method, config.peft.method
    wanted = method(chosen).peft_method
    if chosen in METHODS and kind != wanted:
        yield (
            f"aggregation.method={chosen} averages adapters of peft.method={wanted}, not of {kind}",
            "aggregation.method, peft.method",
            f"set peft.method={wanted}, or aggregation={'core' if kind == 'core' else 'alternating'}",
        )


def _ranks(config: Config) -> Iterator[Finding]:
    chosen, ranks = config.aggregation.method, config.aggregation.site_ranks
    rest = method(chosen).other_rows
    too_large = {name: rank for name, rank in ranks.items() if rank > config.peft.rank}
    if too_large:
        name, rank = next(iter(too_large.items()))
        yield (
            f"aggregation.site_ranks gives {shown(name)} the rank {rank}, the adapter has {config.peft.rank}",
            "aggregation.site_ranks, peft.rank",
            f"set peft.rank={max(too_large.values())}, or a smaller rank for the site",
        )
    if ranks and rest is None:
        yield (
            f"aggregation.method={shown(chosen)} needs the same rank at every site",
            "aggregation.site_ranks, aggregation.method",
            "set aggregation=alternating, exact for nested rows, or svd; or leave site_ranks out",
        )
    if ranks and rest == "dropped" and config.secagg.enabled:
        yield (
            f"under {chosen} a site of a smaller rank drops rows, and no clip bound holds for that change",
            "aggregation.site_ranks, secagg.enabled",
            "set aggregation=alternating or ffa, under which the other rows stay, or secagg=off",
        )


def _fit_rounds(config: Config) -> Iterator[Finding]:
    every, rounds = rounds_a_training(config), config.federation.rounds
    chosen = config.aggregation.method
    if rounds % every:
        yield (
            f"under secure aggregation one training of {chosen} takes {every} rounds, and "
            f"federation.rounds={rounds} ends in the middle of one",
            "federation.rounds, aggregation.method",
            f"set federation.rounds={rounds + every - rounds % every}",
        )
    if every > 1 and config.gate.judge != "none":
        yield (
            f"a gate takes single rounds back, and under secure aggregation {every} rounds of {chosen} "
            "belong together",
            "gate.judge, aggregation.method",
            "set gate=none, or aggregation=alternating",
        )


def _sketch(config: Config) -> Iterator[Finding]:
    aggregation = config.aggregation
    if not method(aggregation.method).sketches:
        return
    if aggregation.sketch_width is None or aggregation.sketch_width < config.peft.rank:
        yield (
            f"aggregation.sketch_width is {aggregation.sketch_width}, and a sketch must be at least as wide "
            f"as the adapter's rank, {config.peft.rank}",
            "aggregation.sketch_width, peft.rank",
            f"set aggregation.sketch_width={2 * config.peft.rank * (clients_in_a_round(config) or 4)}",
        )
    elif config.secagg.enabled and aggregation.sketch_width < 2 * config.peft.rank:
        yield (
            f"aggregation.sketch_width is {aggregation.sketch_width}, and under secure aggregation a sketch "
            f"must be at least twice as wide as the adapter's rank, {config.peft.rank}",
            "aggregation.sketch_width, peft.rank, secagg.enabled",
            f"set aggregation.sketch_width={2 * config.peft.rank * (clients_in_a_round(config) or 4)}",
        )
    if config.secagg.enabled and config.secagg.groups > 1:
        yield (
            "secagg.groups takes the median of each value over groups, and that of sketches is no sketch",
            "secagg.groups, aggregation.method",
            "set secagg.groups=1, or aggregation=alternating",
        )
    if aggregation.error_meter:
        yield (
            "the error meter needs each site's factors, and under sketch the server receives sketches",
            "aggregation.method, aggregation.error_meter",
            "set aggregation.error_meter=false",
        )


def _steered(config: Config) -> Iterator[Finding]:
    chosen = config.aggregation.method
    defence, optimizer = config.defence, config.server_optimizer
    for key, name in (("defence", defence.name), ("server_optimizer", optimizer.name)):
        if name != "none" and not method(chosen).summable:
            yield (
                f"{key}={name} works on a mean of deltas, and {chosen} takes none",
                f"{key}.name, aggregation.method",
                f"set {key}=none, or aggregation=alternating",
            )
    if defence.name != "none" and config.secagg.enabled:
        yield (
            f"defence={defence.name} compares single updates, and secure aggregation shows their sum alone",
            "defence.name, secagg.enabled",
            "set defence=none and secagg.groups=3, the median of the means of fixed groups; or secagg=off",
        )
    if defence.name != "none" and config.aggregation.site_ranks:
        yield (
            f"defence={defence.name} takes rows that a site does not train for its opinion",
            "defence.name, aggregation.site_ranks",
            "leave site_ranks out, or set defence=none",
        )
    if optimizer.name != "none" and config.secagg.enabled:
        yield (
            f"server_optimizer={optimizer.name} moves the adapter further than a mean of updates can, which "
            "sites refuse under secure aggregation",
            "server_optimizer.name, secagg.enabled",
            "set server_optimizer=none, or secagg=off",
        )
    in_round = clients_in_a_round(config)
    needed = least_updates(defence.name, defence.byzantine)
    if in_round is not None and in_round < needed:
        yield (
            f"defence={defence.name} against {defence.byzantine} false updates needs {needed} in a round, "
            f"which has {in_round}",
            "defence.byzantine, partition, federation.clients_per_round",
            f"set defence.byzantine={max(0, _bearable(defence.name, in_round))}, or defence=median",
        )


def _bearable(defence: str, updates: int) -> int:
    """The most false updates that a defence stands among so many; -1 for none at all."""
    return max((f for f in range(updates) if least_updates(defence, f) <= updates), default=-1)


def _gate(config: Config) -> Iterator[Finding]:
    gate, known = config.gate, method(config.aggregation.method)
    if gate.judge == "none":
        if gate.norm_bound is not None or gate.files:
            yield (
                "gate.norm_bound and gate.files would be ignored: gate.judge is none",
                "gate.judge, gate.norm_bound, gate.files",
                "set gate=sites or gate=server, or leave them out",
            )
        return
    if (gate.judge == "server") != bool(gate.files):
        yield (
            "gate.judge is server, but gate.files names no rows to judge by"
            if gate.judge == "server"
            else f"gate.files would be ignored: gate.judge is {gate.judge}",
            "gate.judge, gate.files",
            "set gate.files=[rows.jsonl] and gate=server, or gate=sites without files",
        )
    if gate.judge == "sites" and "held_out_loss" not in config.federation.metrics:
        yield (
            "gate.judge is sites, but federation.metrics does not let sites say their held-out loss",
            "gate.judge, federation.metrics",
            "add held_out_loss to federation.metrics, or set gate=server",
        )
    if known.kept:
        yield (
            f"a gate judges one global model, and under {config.aggregation.method} each site has its own",
            "gate.judge, aggregation.method",
            "set gate=none, or aggregation=alternating",
        )
    if config.asynchronous.name != "none":
        yield (
            "a gate takes a round back, and under asynchronous=fedbuff sites train on from it already",
            "gate.judge, asynchronous.name",
            "set gate=none, or asynchronous=none",
        )
    if config.training.control_variates:
        yield (
            "a gate takes a round back, and sites keep the control variates that they had from it",
            "gate.judge, training.control_variates",
            "set gate=none, or training=default",
        )
    if gate.norm_bound is not None and not known.summable:
        yield (
            f"gate.norm_bound measures a mean of deltas, and {config.aggregation.method} takes none",
            "gate.norm_bound, aggregation.method",
            "set gate.norm_bound=null, or aggregation=alternating",
        )


def _attack(config: Config) -> Iterator[Finding]:
    if config.attack.sites and config.updates.quantization != "none":
        yield (
            "false sites of a simulation falsify values, and a quantized update holds integers and scales",
            "attack.sites, updates.quantization",
            "set attack=none, or updates=exact",
        )
    if config.attack.sites and config.backend.name == "deployment":
        yield (
            "attack.sites makes sites of a simulation lie, and sites of a deployment do not",
            "attack.sites, backend.name",
            "set attack=none",
        )


def _personal(config: Config) -> Iterator[Finding]:
    chosen = config.aggregation.method
    if method(chosen).kept and config.aggregation.error_meter:
        yield (
            f"the error meter compares with the one mean model, and under {chosen} each site has its own",
            "aggregation.method, aggregation.error_meter",
            "set aggregation.error_meter=false",
        )


def _quantized(config: Config) -> Iterator[Finding]:
    chosen, updates = config.aggregation.method, config.updates
    known = method(chosen)
    if updates.quantization == "none":
        return
    if known.why_not_quantized is not None:
        yield (
            f"updates.quantization={updates.quantization} takes a delta of A or B, and under {chosen} "
            f"{known.why_not_quantized}",
            "updates.quantization, aggregation.method",
            "set updates=exact, or aggregation=alternating",
        )
    elif updates.error_feedback and known.resets_moments:
        yield (
            f"updates.error_feedback adds what rounding left out to the next update, and {chosen} puts the "
            "factors into other coordinates every round",
            "updates.error_feedback, aggregation.method",
            "set updates.error_feedback=false, or aggregation=alternating",
        )


def _deployed(config: Config) -> Iterator[Finding]:
    why_not = method(config.aggregation.method).why_not_deployed
    if config.backend.name == "deployment" and why_not is not None:
        yield (
            f"aggregation.method={config.aggregation.method} works in a simulation alone: {why_not}",
            "aggregation.method, backend.name",
            "set aggregation=alternating, or simulate it",
        )


AGGREGATION_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _adapter_kind,
    _steered,
    _attack,
    _gate,
    _personal,
    _ranks,
    _fit_rounds,
    _sketch,
    _quantized,
    _deployed,
)
