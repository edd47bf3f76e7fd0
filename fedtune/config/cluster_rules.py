"""What sites that are grouped by their updates (``personal=clusters``) do not go together with."""

from __future__ import annotations

from collections.abc import Iterator

from fedtune.config.aggregation_rules import Finding
from fedtune.config.methods import METHODS, method
from fedtune.config.schema import Config
from fedtune.config.validate import shown

__all__ = ["cluster_findings"]

_ON = "personal.name"


def cluster_findings(config: Config) -> Iterator[Finding]:
    """Say what keeps a configuration from clusters, beside what keeps it from own models of any kind."""
    personal = config.personal
    if personal.name != "clusters":
        if personal.clusters is not None or personal.warm_up_rounds:
            yield (
                f"personal.clusters and warm_up_rounds would be ignored: personal is {personal.name}",
                f"{_ON}, personal.clusters, personal.warm_up_rounds",
                "set personal=clusters, or leave them out",
            )
        return
    yield from _numbers(config)
    yield from _updates(config)
    yield from _one_model(config)


def _numbers(config: Config) -> Iterator[Finding]:
    number, warm_up = config.personal.clusters, config.personal.warm_up_rounds
    clients = config.partition.clients or len(config.partition.values) or None
    rounds = config.federation.rounds
    if number is None:
        yield (
            "personal is clusters, but personal.clusters does not say how many",
            f"{_ON}, personal.clusters",
            "set personal.clusters=2, or more",
        )
    elif clients is not None and clients < number:
        yield (
            f"there are {clients} clients, and {number} clusters need as many at least",
            "personal.clusters, partition",
            f"set personal.clusters={clients}" if clients >= 2 else "use more clients, or personal=none",
        )
    if warm_up >= rounds:
        yield (
            f"the clusters would be made in round {warm_up + 1}, and there are {rounds}",
            "personal.warm_up_rounds, federation.rounds",
            f"set personal.warm_up_rounds={max(0, rounds - 2)}, or more rounds",
        )


def _updates(config: Config) -> Iterator[Finding]:
    chosen = config.aggregation.method
    known = method(chosen)
    if not known.summable or known.kept:
        possible = [name for name, each in METHODS.items() if each.summable and not each.kept]
        why = "sites have models of their own already" if known.kept else "there is no mean of deltas"
        yield (
            f"a cluster's adapter is moved by a mean of its members' deltas; under {shown(chosen)} {why}",
            f"{_ON}, aggregation.method",
            f"choose one of {', '.join(possible)}; or personal=none",
        )
    if config.secagg.enabled:
        yield (
            "clusters are made by comparing single updates, and secure aggregation shows their sum alone",
            f"{_ON}, secagg.enabled",
            "set personal=ditto or personal=fine_tuning, which need no single update; or secagg=off",
        )


def _one_model(config: Config) -> Iterator[Finding]:
    others = (
        (
            config.defence.name != "none",
            "a defence outvotes a few false updates, and a false site chooses by its update which cluster it "
            "is in",
            "defence.name",
            "set defence=none, with updates.max_norm against long updates; or personal=ditto",
        ),
        (
            config.gate.judge != "none",
            "a gate judges one global model, and each cluster has its own",
            "gate.judge",
            "set gate=none, or personal=ditto",
        ),
        (
            config.training.control_variates,
            "control variates are a mean over the sites of one model, and each cluster has its own",
            "training.control_variates",
            "set training=fedprox, or personal=ditto",
        ),
        (
            config.aggregation.error_meter,
            "the error meter compares with the one mean model, and each cluster has its own",
            "aggregation.error_meter",
            "set aggregation.error_meter=false",
        ),
    )
    for wrong, what, key, fix in others:
        if wrong:
            yield what, f"{_ON}, {key}", fix
