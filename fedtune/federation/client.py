"""The site's half of a round, as a Flower ClientApp.

The same handlers serve a virtual client of a simulation and a hospital's own process; what differs is how
a `Site` is found for a Flower context, which the caller passes in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import fedtune
from fedtune.aggregation.ranks import full_delta
from fedtune.config.derived import kept_rounds
from fedtune.config.methods import method
from fedtune.data.seeds import derive_seed
from fedtune.data.tokenize import TokenizedExample
from fedtune.errors import DataError, FedtuneError, Problem, SecureAggregationError, TrainingError
from fedtune.evaluation.loss import held_out_loss
from fedtune.federation.downlink import placed, received
from fedtune.federation.optimizer_memory import OptimizerMemory
from fedtune.federation.own_factors import OwnFactors
from fedtune.federation.residual_memory import ResidualMemory
from fedtune.federation.round_files import RoundFiles
from fedtune.federation.site import Site, WalkPosition
from fedtune.federation.uplink import rank_of_site, uplink
from fedtune.federation.wire import (
    PROTOCOL,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    HelloRequest,
    TrainReply,
    TrainRequest,
    arrays_of,
    content,
    frame_of,
    parse,
    with_frame,
)
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Adapter
from fedtune.models.hardware import release_memory, set_threads
from fedtune.training.delta import Delta
from fedtune.training.train import train
from fedtune.training.walk import examples_for_round
from fedtune.updates.codec import to_arrays
from fedtune.updates.encode import Encoded, encode
from fedtune.updates.protect import Protected, protect

__all__ = ["build_client_app"]

logger = logging.getLogger(__name__)


def build_client_app(find_site: Callable[[Context], Site]) -> ClientApp:
    """Make the ClientApp that answers ``query.hello``, ``train``, ``query.secagg`` and ``evaluate``.

    Guarantee: a handler always answers. What it could not do is a `Failure` with a code and a sentence;
    the traceback stays in the site's own log.

    Args:
        find_site: Gives the site that a Flower context stands for.
    """
    app = ClientApp()

    def answering(handle: Callable[[Message, Site], Message]) -> Callable[[Message, Context], Message]:
        def answer(message: Message, context: Context) -> Message:
            name = "?"
            try:
                site = find_site(context)
                name = site.name
                set_threads(site.threads)
                return handle(message, site)
            except FedtuneError as error:
                logger.info("%s could not do %s: %s", name, message.metadata.message_type, error)
                failure = Failure(site=name, code=error.problems[0].code, reason=_reason(error))
            except MemoryError:
                failure = Failure(site=name, code="FT610", reason="the site ran out of memory")
            except Exception as error:
                # Its words may quote a record: they stay here, and only the type leaves.
                logger.exception("%s failed at %s", name, message.metadata.message_type)
                failure = Failure(site=name, code="FT609", reason=f"unexpected {type(error).__name__}")
            finally:
                release_memory()
            return Message(content(failure), reply_to=message)

        return answer

    # flwr's decorators give back the function unchanged; what matters is that they register it.
    app.query("hello")(answering(_hello))
    app.train()(answering(_train))
    app.query("secagg")(answering(_secagg))
    app.evaluate()(answering(_evaluate))
    return app


def _reason(error: FedtuneError) -> str:
    """Say what went wrong without quoting a row: problems of data may show its beginning."""
    if isinstance(error, DataError):
        return f"its data has {len(error.problems)} problems; its own log lists them"
    return error.problems[0].what


def _hello(message: Message, site: Site) -> Message:
    request = parse(message, HelloRequest)
    if request.protocol != PROTOCOL:
        raise TrainingError(
            Problem(
                code="FT601",
                what=f"the server speaks protocol {request.protocol}, this site {PROTOCOL}",
                where=f"site {site.name}, fedtune {fedtune.__version__}",
                fix="install the same fedtune on the server and on every site",
            )
        )
    info = site.model().info
    reply = HelloReply(
        protocol=PROTOCOL,
        version=fedtune.__version__,
        site=site.name,
        trains=bool(site.train),
        train_examples=site.told("examples", len(site.train)),
        held_out_examples=site.told("examples", len(site.held_out)),
        skipped_rows=site.told("examples", site.skipped_rows),
        base_name=site.base_name or info.name,
        base_hash=info.hash,
        parameters=info.parameters,
        adapter_parameters=info.adapter_parameters,
        quantization=info.quantization,
        compute_dtype=info.compute_dtype,
        load_seconds=info.load_seconds,
    )
    return Message(content(reply), reply_to=message)


def _train(message: Message, site: Site) -> Message:
    request = parse(message, TrainRequest)
    model = site.model()
    adapter, side_car = _global_model(message, site, model)
    kept = kept_rounds(site.config, least=WalkPosition.KEPT_ROUNDS)
    position = WalkPosition(site.state_dir, site.name, kept=kept)
    walk = examples_for_round(
        len(site.train),
        start=position.before(request.round),
        count_per_step=site.config.training.examples_per_step,
        steps=site.config.training.steps_per_round,
        seed=site.config.seed,
        site=site.name,
    )
    steps = [[site.train[row] for row in rows] for rows in walk.steps]
    secure = site.secure
    if secure is None:
        with _trainable(site, model, adapter, side_car, request.round):
            reply, update = _fit(request, site, model, steps)
        record = to_arrays(_encoded(request, site, update))
        position.advance(request.round, walk.end)
        return Message(content(reply, site.lie(record) if site.lie else record), reply_to=message)
    frame = frame_of(message)
    secure.admit(request, adapter, site.config, model.spec)
    rows = [row for step in steps for row in step]
    facts = secure.facts(request, adapter, rows, config=site.config, base_hash=model.info.hash)
    if secure.member.holds(facts):
        reply = _held(request, site)
    else:
        with _trainable(site, model, adapter, side_car, request.round):
            reply, update = _fit(request, site, model, steps)
        update = protect(full_delta(Delta(tensors=update.tensors), adapter, "kept"))
        secure.hold(update, facts, request, site.config, model.spec)
        position.advance(request.round, walk.end)
    return Message(with_frame(content(reply), secure.member.handle(frame)), reply_to=message)


def _fit(
    request: TrainRequest,
    site: Site,
    model: AdaptedModel,
    steps: Sequence[Sequence[TokenizedExample]],
) -> tuple[TrainReply, Protected]:
    """Train what is placed on the model on a round's rows; returns what the site says, and the update."""
    kept = kept_rounds(site.config, least=RoundFiles.KEPT_ROUNDS)
    memory = OptimizerMemory(site.state_dir, site.name, kept=kept)
    known = method(site.config.aggregation.method)
    keeps = site.config.training.keep_optimizer_state and not known.resets_moments
    started = time.time()
    result = train(
        model,
        steps,
        config=site.config.training,
        factors=(*request.factors, *known.kept),
        first_step=request.first_step,
        total_steps=request.total_steps,
        seed=derive_seed(site.config.seed, "train", site.name, request.round),
        moments=memory.before(request.round) if keeps else None,
        on_step=None if site.on_step is None else partial(site.on_step, site.name, request.round),
    )
    reply = TrainReply(
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
    update = protect(uplink(site.config, model, result.delta, request.factors))
    if keeps and result.moments is not None:
        memory.keep(request.round, result.moments)
    if known.kept:
        own = OwnFactors(site.state_dir, site.name)
        own.keep_own(request.round, model.read_adapter(), model.spec, known.kept)
    return reply, update


def _encoded(request: TrainRequest, site: Site, update: Protected) -> Encoded:
    """Encode an update as it travels without a mask; what that leaves out is kept for a later round."""
    updates = site.config.updates
    if not updates.error_feedback:
        return encode(update, updates)[0]
    memory = ResidualMemory(site.state_dir, site.name)
    encoded, residual = encode(update, updates, memory.before(request.round))
    memory.keep(request.round, residual)
    return encoded


def _held(request: TrainRequest, site: Site) -> TrainReply:
    """Say that this very update is there already: the server asks again, after a failure of its own."""
    now = time.time()
    return TrainReply(
        site=site.name,
        round=request.round,
        examples=None,
        tokens=None,
        response_tokens=None,
        steps=site.config.training.steps_per_round,
        loss_before=None,
        loss_after=None,
        started=now,
        finished=now,
        peak_memory_mib=None,
    )


def _secagg(message: Message, site: Site) -> Message:
    """One trip of the protocol: bytes in, bytes out."""
    if site.secure is None:
        raise SecureAggregationError(
            Problem(
                code="FT903",
                what="no state: this site takes no part in secure aggregation",
                where=f"site {site.name}",
                fix="start the run with the site's own configuration",
            )
        )
    answer = site.secure.member.handle(frame_of(message))
    return Message(with_frame(RecordDict(), answer), reply_to=message)


def _evaluate(message: Message, site: Site) -> Message:
    request = parse(message, EvaluateRequest)
    model = site.model()
    adapter, side_car = _global_model(message, site, model)
    started = time.time()
    if site.held_out:
        with placed(model, _own(site, adapter, before=request.round + 1), side_car):
            result = held_out_loss(
                model,
                site.held_out,
                microbatch_tokens=site.config.evaluation.microbatch_tokens,
                on_microbatch=site.on_microbatch,
            )
        loss, tokens, examples = result.loss, result.tokens, result.examples
    else:
        loss, tokens, examples = None, 0, 0
    reply = EvaluateReply(
        site=site.name,
        round=request.round,
        loss=site.told("held_out_loss", loss),
        tokens=site.told("tokens", tokens),
        examples=site.told("examples", examples),
        started=started,
        finished=time.time(),
    )
    return Message(content(reply), reply_to=message)


def _global_model(message: Message, site: Site, model: AdaptedModel) -> tuple[Adapter, Adapter]:
    """Decode the adapter and the side-car that came with a message."""
    return received(
        arrays_of(message),
        model.spec,
        has_side_car=method(site.config.aggregation.method).has_side_car,
        where=f"the server's message {message.metadata.message_type}",
    )


def _trainable(
    site: Site, model: AdaptedModel, adapter: Adapter, side_car: Adapter, round_number: int
) -> AbstractContextManager[None]:
    """Have on the model what this site trains in a round, and beside it what it does not."""
    return placed(
        model,
        _own(site, adapter, before=round_number),
        side_car,
        rows=rank_of_site(site.config, site.name),
        rest=method(site.config.aggregation.method).other_rows == "kept",
    )


def _own(site: Site, adapter: Adapter, *, before: int) -> Adapter:
    """Return the adapter with the factors that the site keeps for itself, if it does, as before a round."""
    if not method(site.config.aggregation.method).kept:
        return adapter
    return OwnFactors(site.state_dir, site.name).personal(adapter, before)
