"""A site's own work in a round: what is trained, what of it is to leave, and what stays on its disk."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from flwr.app import ArrayRecord

from fedtune.config.derived import kept_rounds, rounds_a_training, trained_factors
from fedtune.config.methods import method
from fedtune.data.seeds import derive_seed
from fedtune.data.tokenize import TokenizedExample
from fedtune.federation.control_memory import ControlMemory
from fedtune.federation.controls import read_controls, with_change
from fedtune.federation.downlink import GlobalModel, placed, received, with_own_apart
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.own_factors import OwnFactors
from fedtune.federation.personal import own_adapter, train_beside
from fedtune.federation.residual_memory import ResidualMemory
from fedtune.federation.round_files import RoundFiles
from fedtune.federation.site import Site
from fedtune.federation.uplink import rank_of_site, uplink
from fedtune.federation.wire import TrainReply, TrainRequest
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Adapter, Factor
from fedtune.training.train import TrainingResult, train
from fedtune.updates.codec import to_arrays
from fedtune.updates.encode import encode
from fedtune.updates.protect import Protected, protect

__all__ = ["Trained", "encoded", "fit", "held_reply", "read_global", "reply_of"]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a round's training gave.

    Attributes:
        reply: What the site says.
        update: What of the adapter's change may leave.
        control_change: By how much the site's control variates changed; empty without them.
        kept: A and B as trained, where the next round fits them; empty elsewhere.
    """

    reply: TrainReply
    update: Protected
    control_change: Adapter
    kept: Adapter


def read_global(
    record: ArrayRecord, site: Site, model: AdaptedModel, *, factors: Sequence[Factor], where: str
) -> GlobalModel:
    """Decode what came with a message; its arrays are for reading only.

    The clients of a simulation are sent one and the same record in a round, and it is decoded once.

    Args:
        record: The arrays of the message.
        site: The site that received it.
        model: Its model.
        factors: That the message asks to train; empty for an evaluation, with which no variates come, but
            perhaps the adapter of the site's cluster.
        where: As of `fedtune.updates.codec.from_arrays`.

    Raises:
        UpdateError: FT501 to FT505, as of `fedtune.updates.codec.from_arrays`.
    """
    asked = (site.config, model.spec, tuple(factors))
    if (known := _LAST.of(record, asked)) is not None:
        return known
    whole = record
    controls: Adapter = {}
    own: Adapter = {}
    if not factors and site.config.personal.name == "clusters":
        record, own = with_own_apart(record, model.spec, where=where)
    if factors and site.config.training.control_variates:
        record, controls = read_controls(record, model.spec, factors, site.config.updates, where=where)
    has_side_car = method(site.config.aggregation.method).has_side_car
    adapter, side_car = received(record, model.spec, has_side_car=has_side_car, where=where)
    found = GlobalModel(adapter=adapter, side_car=side_car, controls=controls, own=own)
    _LAST.keep(whole, asked, found)
    return found


class _LastRead:
    """What the last record held, as long as the record is there."""

    def __init__(self) -> None:
        self._found: tuple[weakref.ref[ArrayRecord], object, GlobalModel] | None = None

    def of(self, record: ArrayRecord, asked: object) -> GlobalModel | None:
        if self._found is None or self._found[0]() is not record or self._found[1] != asked:
            return None
        return self._found[2]

    def keep(self, record: ArrayRecord, asked: object, found: GlobalModel) -> None:
        for tensors in (found.adapter, found.side_car, found.controls, found.own):
            for tensor in tensors.values():
                tensor.flags.writeable = False
        self._found = weakref.ref(record, self._forget), asked, found

    def _forget(self, gone: weakref.ref[ArrayRecord]) -> None:
        if self._found is not None and self._found[0] is gone:
            self._found = None


_LAST = _LastRead()


def fit(
    request: TrainRequest,
    site: Site,
    model: AdaptedModel,
    start: GlobalModel,
    steps: Sequence[Sequence[TokenizedExample]],
) -> Trained:
    """Train the global model on a round's rows, and keep what the site keeps.

    Raises:
        RunError: FT721, FT723, FT724, a file of an earlier round is damaged.
        TrainingError: As of `fedtune.training.train.train`.
        UpdateError: FT504, the update is not finite.
    """
    known = method(site.config.aggregation.method)
    keeps = site.config.training.keep_optimizer_state and not known.resets_moments
    kept = kept_rounds(site.config, least=RoundFiles.KEPT_ROUNDS)
    memory = OptimizerMemory(site.state_dir, site.name, kept=kept)
    variates = ControlMemory(site.state_dir, site.name)
    before = variates.before(request.round, start.adapter) if start.controls else {}
    started = time.time()
    with _trainable(site, model, start, request.round):
        result = (site.trainer or train)(
            model,
            steps,
            config=site.config.training,
            factors=trained_factors(site.config, request.factors),
            first_step=request.first_step,
            total_steps=request.total_steps,
            seed=derive_seed(site.config.seed, "train", site.name, request.round),
            moments=memory.before(request.round) if keeps else None,
            correction={name: mean - before[name] for name, mean in start.controls.items()} or None,
            on_step=None if site.on_step is None else partial(site.on_step, site.name, request.round),
        )
        update = protect(uplink(site.config, model, result.delta, request.factors, start.adapter))
        kept_for_fit = result.adapter if rounds_a_training(site.config) > 1 else {}
        if known.kept:
            own = OwnFactors(site.state_dir, site.name)
            own.keep_own(request.round, result.adapter, model.spec, known.kept)
    train_beside(request, site, model, start, steps)
    if keeps and result.moments is not None:
        memory.keep(request.round, result.moments)
    if start.controls:
        variates.keep(request.round, result.mean_gradients)
    return Trained(
        reply=reply_of(request, site, result, started),
        update=update,
        control_change={name: after - before[name] for name, after in result.mean_gradients.items()},
        kept=kept_for_fit,
    )


def encoded(request: TrainRequest, site: Site, trained: Trained) -> ArrayRecord:
    """Encode what leaves without a mask; what rounding leaves out is kept for a later round."""
    updates = site.config.updates
    if updates.error_feedback:
        memory = ResidualMemory(site.state_dir, site.name)
        payload, residual = encode(trained.update, updates, memory.before(request.round))
        memory.keep(request.round, residual)
    else:
        payload, _ = encode(trained.update, updates)
    record = to_arrays(payload)
    return with_change(record, trained.control_change) if trained.control_change else record


def _trainable(
    site: Site, model: AdaptedModel, start: GlobalModel, round_number: int
) -> AbstractContextManager[None]:
    """Have on the model what this site trains in a round, and beside it what it does not."""
    return placed(
        model,
        own_adapter(site, start.adapter, before=round_number),
        start.side_car,
        rows=rank_of_site(site.config, site.name),
        rest=method(site.config.aggregation.method).other_rows == "kept",
    )


def reply_of(request: TrainRequest, site: Site, result: TrainingResult, started: float) -> TrainReply:
    """Return what a site says of its training, which began at ``started`` and ends now."""
    return TrainReply(
        site=site.name,
        round=request.round,
        examples=site.told("examples", result.examples),
        tokens=site.told("tokens", result.tokens),
        response_tokens=site.told("tokens", result.response_tokens),
        steps=result.steps,
        loss_before=site.told("train_loss", result.loss_before),
        loss_after=site.told("train_loss", result.loss_after),
        started=started,
        finished=time.time(),
        peak_memory_mib=site.told("peak_memory", result.peak_memory_mib),
    )


def held_reply(request: TrainRequest, site: Site, *, steps: int, started: float | None = None) -> TrainReply:
    """Return what a site says of an update that took no training now.

    Args:
        request: What was asked.
        site: The site.
        steps: That the update took when it was made; 0 for one that is fitted.
        started: When the work began; None where the update was there already, since the server asks again.
    """
    now = time.time()
    return TrainReply(
        site=site.name,
        round=request.round,
        examples=None,
        tokens=None,
        response_tokens=None,
        steps=steps,
        loss_before=None,
        loss_after=None,
        started=now if started is None else started,
        finished=now,
        peak_memory_mib=None,
    )
