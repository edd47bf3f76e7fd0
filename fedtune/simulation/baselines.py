"""What to compare a federation with: each site alone, and all rows in one place.

Both get the federation's budget of optimizer steps and its settings, but a learning rate of their own where
``baseline_learning_rates`` names one. ``local`` trains one adapter for each site, for as many steps as that
site took in the federation, and tests it on that site's held-out rows. ``centralized`` trains one adapter
on the pooled rows, for as many steps as all sites took together, and tests it at every site. Both train A
and B.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from fedtune.config.schema import Config
from fedtune.data.seeds import derive_seed
from fedtune.data.tokenize import TokenizedExample
from fedtune.evaluation.loss import held_out_loss
from fedtune.models.adapter import FACTORS, initial_adapter
from fedtune.models.hardware import set_threads
from fedtune.observability.events import BaselineFinished, Event
from fedtune.simulation.sites import VirtualSites
from fedtune.training.train import train
from fedtune.training.walk import examples_for_round

__all__ = ["missing_baselines", "run_baseline"]

Baseline = tuple[Literal["local", "centralized"], int | None]
"""``("local", index of the site)`` or ``("centralized", None)``."""


def missing_baselines(sites: VirtualSites, events: Iterable[Event]) -> list[Baseline]:
    """Return the configured baselines that no event reports yet, in the order to run them."""
    done = {(event.kind, event.site) for event in events if isinstance(event, BaselineFinished)}
    wanted: list[Baseline] = []
    for kind in sites.config.baselines:
        if kind == "centralized":
            wanted.append((kind, None))
        else:
            wanted += [(kind, index) for index in range(len(sites)) if sites.site(index, honest=True).train]
    names = sites.partition.names
    return [
        (kind, index) for kind, index in wanted if (kind, None if index is None else names[index]) not in done
    ]


def baseline_learning_rate(config: Config, kind: Literal["local", "centralized"]) -> float:
    """Return the peak learning rate of a kind of baseline."""
    return config.baseline_learning_rates.get(kind, config.training.learning_rate)


def _trainings(config: Config, *, sites: int, active: int) -> int:
    """Return how often the federation lets so many of its sites train, in all; under FedBuff on average."""
    rounds, pace = config.federation.rounds, config.asynchronous
    if pace.name == "none":
        return rounds * active
    return max(1, rounds * pace.buffer * active // sites)


def run_baseline(sites: VirtualSites, baseline: Baseline) -> BaselineFinished:
    """Train and test one baseline, from the same seeded start as the federation."""
    kind, index = baseline
    config = sites.config
    every = [sites.site(number, honest=True) for number in range(len(sites))]
    chosen = every if index is None else [every[index]]
    rows: list[TokenizedExample] = [row for site in chosen for row in site.train]
    active = sum(1 for site in chosen if site.train)
    steps = config.training.steps_per_round * _trainings(config, sites=len(sites), active=active)
    name = "centralized" if index is None else chosen[0].name
    started = time.perf_counter()
    set_threads(sites.threads)
    model = sites.model()
    model.load_adapter(initial_adapter(model.spec, config.seed))
    walk = examples_for_round(
        len(rows),
        start=0,
        count_per_step=config.training.examples_per_step,
        steps=steps,
        seed=config.seed,
        site=f"{kind}/{name}",
    )
    train(
        model,
        [[rows[row] for row in step] for step in walk.steps],
        config=replace(config.training, learning_rate=baseline_learning_rate(config, kind)),
        factors=FACTORS,
        first_step=0,
        total_steps=steps,
        seed=derive_seed(config.seed, "baseline", kind, name),
    )
    losses: dict[str, float | None] = {
        site.name: held_out_loss(
            model, site.held_out, microbatch_tokens=config.evaluation.microbatch_tokens
        ).loss
        for site in chosen
        if site.held_out
    }
    return BaselineFinished(
        kind=kind,
        site=None if index is None else name,
        held_out_loss=losses,
        steps=steps,
        seconds=time.perf_counter() - started,
    )
