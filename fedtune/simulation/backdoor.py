"""Does a planted backdoor work? Measured on held-out prompts, with the trigger and without it.

The measure is teacher-forced: at each prompt the losses of the target and of the right answer are compared,
in nats per token, since answers of different lengths have no comparable probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from fedtune.config.methods import method
from fedtune.data.examples import Example
from fedtune.data.tokenize import tokenize_all
from fedtune.evaluation.loss import held_out_loss
from fedtune.federation.downlink import placed
from fedtune.federation.own_factors import OwnFactors
from fedtune.models.adapted import load_tokenizer
from fedtune.models.adapter import Adapter, initial_adapter
from fedtune.models.hardware import set_threads
from fedtune.observability.events import BackdoorMeasured
from fedtune.observability.statistics import mean
from fedtune.simulation.poison import answered, is_asked, triggered
from fedtune.simulation.samples import in_turn
from fedtune.simulation.sites import VirtualSites

__all__ = ["measure_backdoor"]

Prompt = tuple[str, Example]
"""Name of the site that holds a row out, and the row."""


def measure_backdoor(sites: VirtualSites, adapter: Adapter, side_car: Adapter) -> BackdoorMeasured:
    """Measure a run's backdoor on the first ``attack.prompts`` held-out prompts of the sites in turn.

    Where sites keep factors for themselves, each prompt is put to its own site's model.

    Args:
        sites: Of a run with ``attack.kind=backdoor``.
        adapter: The federated adapter.
        side_car: What stands beside it; empty for nothing.
    """
    started, attack = time.perf_counter(), sites.config.attack
    chosen = [(site, row) for site, row in in_turn(sites) if is_asked(row) and row.response != attack.target][
        : attack.prompts
    ]
    set_threads(sites.threads)
    base = initial_adapter(sites.model().spec, sites.config.seed)

    def losses(rows: Sequence[Prompt], *, federated: bool) -> list[float]:
        return _losses(sites, rows, adapter if federated else base, side_car if federated else {}, federated)

    fired = [(site, triggered(row, attack.trigger)) for site, row in chosen]
    false = losses(_with_target(fired, attack.target), federated=True)
    right = losses(fired, federated=True)
    quiet = losses(_with_target(chosen, attack.target), federated=True)
    base_false = losses(_with_target(fired, attack.target), federated=False)
    return BackdoorMeasured(
        prompts=len(chosen),
        success=_share(false, right),
        success_without_trigger=_share(quiet, losses(chosen, federated=True)),
        success_before=_share(base_false, losses(fired, federated=False)),
        target_loss=mean(false),
        right_loss=mean(right),
        seconds=time.perf_counter() - started,
    )


def _with_target(rows: Sequence[Prompt], target: str) -> list[Prompt]:
    return [(site, answered(row, target)) for site, row in rows]


def _losses(
    sites: VirtualSites, rows: Sequence[Prompt], adapter: Adapter, side_car: Adapter, federated: bool
) -> list[float]:
    """Return the loss of each row's answer, in nats per token."""
    config, model, found = sites.config, sites.model(), list[float]()
    personal = federated and bool(method(config.aggregation.method).kept)
    tokenized = tokenize_all([row for _, row in rows], load_tokenizer(config.model), config.data)
    for (site, _), row in zip(rows, tokenized, strict=True):
        weights = adapter
        if personal:
            own = OwnFactors(sites.site(0).state_dir, site)
            weights = own.personal(adapter, config.federation.rounds + 1)
        with placed(model, weights, side_car):
            tokens = config.evaluation.microbatch_tokens
            found.append(held_out_loss(model, [row], microbatch_tokens=tokens).loss)
    return found


def _share(false: Sequence[float], right: Sequence[float]) -> float | None:
    pairs = list(zip(false, right, strict=True))
    return sum(a < b for a, b in pairs) / len(pairs) if pairs else None
