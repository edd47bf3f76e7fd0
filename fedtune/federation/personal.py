"""A site's own model: trained beside the federation's, or from it after the last round; it never leaves.

``ditto``: beside each round's training the site takes as many steps, over the same rows, with a model v of
its own on f_i(v) + (lambda / 2) ||v - w||^2, where w is the global adapter that it received. Li et al.,
"Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021, arXiv:2012.04221, Algorithm 1.

``fine_tuning``: after the last round the site takes some steps from the final model, over the rows that come
next in its walk (Yu, Bagdasaryan and Shmatikov, "Salvaging Federated Learning by Local Adaptation", 2020,
arXiv:2002.04758, section 4).

What a site sends and what the federation computes are the same bits with and without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from fedtune.config.derived import keeps_own_model
from fedtune.config.methods import method
from fedtune.config.schema import Config, TrainingConfig
from fedtune.data.seeds import derive_seed
from fedtune.data.tokenize import TokenizedExample
from fedtune.export.adapter import save_global
from fedtune.federation.downlink import GlobalModel, placed
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.own_factors import OwnFactors
from fedtune.federation.site import Site, WalkPosition
from fedtune.federation.wire import TrainRequest
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Adapter
from fedtune.training.train import TrainingResult, train
from fedtune.training.walk import examples_for_round

__all__ = ["fine_tune", "is_fine_tuning", "own_adapter", "own_model", "train_beside", "write_own_model"]


def own_adapter(site: Site, adapter: Adapter, *, before: int) -> Adapter:
    """Return what a site trains in a round: the adapter, with the factors that it keeps, if any."""
    if not method(site.config.aggregation.method).kept:
        return adapter
    return OwnFactors(site.state_dir, site.name).personal(adapter, before)


def own_model(site: Site, adapter: Adapter, *, after: int) -> Adapter | None:
    """Return a site's own model as it is after a round; None where it has none.

    Args:
        site: The site.
        adapter: The global adapter after that round.
        after: The round; after the last one the model is fine-tuned, where that is configured.

    Raises:
        RunError: FT723, its file is damaged.
    """
    config, own = site.config, OwnFactors(site.state_dir, site.name)
    last = after == config.federation.rounds
    if not keeps_own_model(config):
        return None
    before = after + (2 if last and config.personal.name == "fine_tuning" else 1)
    return own.personal(adapter, before) if own.has(before) else None


def is_fine_tuning(request: TrainRequest, config: Config) -> bool:
    """Say whether a request asks for the steps after the last round."""
    return config.personal.name == "fine_tuning" and request.round == config.federation.rounds + 1


def train_beside(
    request: TrainRequest,
    site: Site,
    model: AdaptedModel,
    start: GlobalModel,
    steps: Sequence[Sequence[TokenizedExample]],
) -> None:
    """Train the site's own model in a round, where it has one beside the federation's.

    Raises:
        RunError: FT721, FT723, a file of an earlier round is damaged.
        TrainingError: As of `fedtune.training.train.train`.
    """
    config = site.config
    if config.personal.name != "ditto":
        return
    factors = method(config.aggregation.method).trained
    own = OwnFactors(site.state_dir, site.name)
    memory = OptimizerMemory(site.state_dir, site.name, kind="own_moments")
    training = replace(_training(config), proximal_mu=config.personal.pull)
    with placed(model, own.personal(start.adapter, request.round), {}):
        result = train(
            model,
            steps,
            config=training,
            factors=factors,
            first_step=request.first_step,
            total_steps=request.total_steps,
            seed=derive_seed(config.seed, "ditto", site.name, request.round),
            moments=memory.before(request.round) if training.keep_optimizer_state else None,
            pulled_to=start.adapter,
            on_step=None if site.on_step is None else partial(site.on_step, site.name, request.round),
        )
        own.keep_own(request.round, result.adapter, model.spec, factors)
    if result.moments is not None:
        memory.keep(request.round, result.moments)


def fine_tune(request: TrainRequest, site: Site, model: AdaptedModel, start: GlobalModel) -> TrainingResult:
    """Take the steps after the last round, and keep what they give.

    Raises:
        RunError: FT723, the site's own factors are damaged.
        TrainingError: As of `fedtune.training.train.train`; FT401, the site has no rows.
    """
    config = site.config
    factors = method(config.aggregation.method).trained
    walk = examples_for_round(
        len(site.train),
        start=WalkPosition(site.state_dir, site.name).before(request.round),
        count_per_step=config.training.examples_per_step,
        steps=config.personal.steps,
        seed=config.seed,
        site=site.name,
    )
    with placed(model, own_adapter(site, start.adapter, before=request.round), start.side_car):
        result = train(
            model,
            [[site.train[row] for row in rows] for rows in walk.steps],
            config=replace(_training(config), proximal_mu=0.0, keep_optimizer_state=False),
            factors=factors,
            first_step=0,
            total_steps=config.personal.steps,
            seed=derive_seed(config.seed, "fine_tuning", site.name),
            on_step=None if site.on_step is None else partial(site.on_step, site.name, request.round),
        )
        OwnFactors(site.state_dir, site.name).keep_own(request.round, result.adapter, model.spec, factors)
    return result


def write_own_model(site: Site, model: AdaptedModel, own: Adapter, side_car: Adapter) -> None:
    """Write a site's own model in PEFT format, where the site has a place for it."""
    if site.own_model_dir is not None:
        save_global(own, side_car, model.spec, site.config, site.own_model_dir)


def _training(config: Config) -> TrainingConfig:
    rate = config.personal.learning_rate
    return config.training if rate is None else replace(config.training, learning_rate=rate)
