"""What sites do by themselves, control variates and own models, and what that does not go together with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fedtune.config.aggregation_rules import Finding
from fedtune.config.cluster_rules import cluster_findings
from fedtune.config.methods import method
from fedtune.config.schema import Config
from fedtune.config.validate import shown

__all__ = ["LOCAL_RULES", "own_model_findings"]


def _control_variates(config: Config) -> Iterator[Finding]:
    """SCAFFOLD (`fedtune.aggregation.control`): gradients of all sites in one set of coordinates."""
    if not config.training.control_variates:
        return
    chosen, on = config.aggregation.method, "training.control_variates"
    known = method(chosen)
    if not known.summable or known.kept:
        why = "keeps factors at the sites" if known.kept else "does not average deltas"
        yield (
            f"control variates are mean gradients of factors that all sites share, and {shown(chosen)} {why}",
            f"{on}, aggregation.method",
            "set aggregation=alternating, ffa or fedavg; or training=fedprox",
        )
    if config.aggregation.weighting != "uniform":
        yield (
            f"with weights by {config.aggregation.weighting} the sites' corrections would not add up to "
            "nothing: control variates are a plain mean over sites",
            f"{on}, aggregation.weighting",
            "set aggregation.weighting=uniform, or training=fedprox",
        )
    if config.secagg.enabled:
        yield (
            "control variates are gradients, and the clip bound of secure aggregation is that of weights",
            f"{on}, secagg.enabled",
            "set training=fedprox, which holds sites back and sends nothing more; or secagg=off",
        )
    others = (
        (
            config.asynchronous.name != "none",
            "control variates of late updates are of another adapter than those that the federation has now",
            "asynchronous.name",
            "set asynchronous=none, or training=fedprox",
        ),
        (
            config.defence.name != "none",
            "a defence judges updates, and false control variates would pass beside them",
            "defence.name",
            "set defence=none, or training=fedprox",
        ),
        (
            config.updates.quantization != "none",
            "control variates travel as they are, beside an update in few bits",
            "updates.quantization",
            "set updates=exact, or training=fedprox",
        ),
        (
            bool(config.aggregation.site_ranks),
            "control variates need one rank at all sites",
            "aggregation.site_ranks",
            "leave site_ranks out, or set training=fedprox",
        ),
    )
    for wrong, what, key, fix in others:
        if wrong:
            yield what, f"{on}, {key}", fix


def own_model_findings(config: Config) -> Iterator[Finding]:
    """Say what keeps a configuration from models of the sites' own (`fedtune.federation.personal`)."""
    yield from cluster_findings(config)
    own, chosen = config.personal.name, config.aggregation.method
    known = method(chosen)
    if own == "none":
        return
    if config.asynchronous.name != "none":
        yield (
            f"personal={own} goes by rounds, and under {config.asynchronous.name} sites have none in common",
            "personal.name, asynchronous.name",
            "set asynchronous=none, or personal=none",
        )
    if config.aggregation.site_ranks:
        yield (
            f"personal={own} trains the whole adapter at every site, and site_ranks gives some a part of it",
            "personal.name, aggregation.site_ranks",
            "leave site_ranks out, or set personal=none",
        )
    if own == "ditto" and (known.kept or known.has_side_car or known.resets_moments):
        why = (
            "sites have models of their own already"
            if known.kept
            else "the global adapter is in other coordinates every round, and a distance to it means nothing"
        )
        yield (
            f"ditto pulls a site's own adapter to the global one, and under {chosen} {why}",
            "personal.name, aggregation.method",
            "set personal=fine_tuning, or aggregation=alternating",
        )


def _evaluated(config: Config) -> Iterator[Finding]:
    """A site writes its own model when it is evaluated after the last round."""
    own, chosen = config.personal.name, config.aggregation.method
    if config.evaluation.clients is None or not (own != "none" or method(chosen).kept):
        return
    has = f"personal={own}" if own != "none" else f"aggregation={chosen}"
    yield (
        f"under {has} every site has a model of its own, which it is asked about and writes after the last "
        "round, and evaluation.clients leaves sites out",
        "evaluation.clients, personal.name, aggregation.method",
        "set evaluation.clients=null",
    )


LOCAL_RULES: tuple[Callable[[Config], Iterator[Finding]], ...] = (
    _control_variates,
    own_model_findings,
    _evaluated,
)
