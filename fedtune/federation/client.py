"""The site's half of a round, as a Flower ClientApp.

The same handlers serve a virtual client of a simulation and a hospital's own process; what differs is how
a `Site` is found for a Flower context, which the caller passes in.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

import fedtune
from fedtune.config.derived import is_fit, kept_rounds, rounds_a_training
from fedtune.errors import DataError, FedtuneError, Problem, SecureAggregationError, TrainingError
from fedtune.evaluation.loss import HeldOutLoss, held_out_loss
from fedtune.federation.downlink import GlobalModel, placed
from fedtune.federation.fit_round import Received, fit_kept
from fedtune.federation.kept_training import KeptTraining, Training
from fedtune.federation.local_round import encoded, fit, held_reply, read_global, reply_of
from fedtune.federation.personal import (
    fine_tune,
    is_fine_tuning,
    own_adapter,
    own_model,
    write_own_model,
)
from fedtune.federation.site import Site, WalkPosition
from fedtune.federation.uplink import read_uplink
from fedtune.federation.wire import (
    PROTOCOL,
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    HelloRequest,
    TrainRequest,
    arrays_of,
    content,
    frame_of,
    parse,
    with_frame,
)
from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Adapter, Factor
from fedtune.models.hardware import release_memory, set_threads
from fedtune.training.delta import Delta
from fedtune.training.walk import examples_for_round
from fedtune.updates.codec import to_arrays
from fedtune.updates.protect import protect

__all__ = ["build_client_app"]

logger = logging.getLogger(__name__)

_HELLO = "query.hello"


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
                if message.metadata.message_type != _HELLO:  # which takes no memory worth the time
                    release_memory()
            return Message(content(failure), reply_to=message)

        return answer

    # flwr's decorators give back the function unchanged; what matters is that they register it.
    app.query(_HELLO.removeprefix("query."))(answering(_hello))
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
    if is_fine_tuning(request, site.config):
        return _fine_tune(message, request, site, model)
    start = _global_model(message, site, model, request.factors)
    secure = site.secure
    if secure is not None and is_fit(site.config, request.round):
        here = Received(adapter=start.adapter, spec=model.spec, base_hash=model.info.hash)
        reply = fit_kept(request, site, secure, here, partial(_as_told, site))
        return Message(with_frame(content(reply), secure.member.handle(frame_of(message))), reply_to=message)
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
    if secure is None:
        trained = fit(request, site, model, start, steps)
        record = encoded(request, site, trained)
        position.advance(request.round, walk.end)
        return Message(content(trained.reply, site.lie(record) if site.lie else record), reply_to=message)
    frame = frame_of(message)
    secure.admit(request, start.adapter, site.config, model.spec)
    rows = [row for step in steps for row in step]
    facts = secure.facts(request, start.adapter, rows, config=site.config, base_hash=model.info.hash)
    if secure.member.holds(facts):
        reply = held_reply(request, site, steps=site.config.training.steps_per_round)
    else:
        trained = fit(request, site, model, start, steps)
        reply, of_site = trained.reply, Delta(tensors=trained.update.tensors)
        update = protect(_as_told(site, read_uplink(site.config, of_site, start.adapter)))
        if trained.kept:
            memory = KeptTraining(site.state_dir, site.name)
            memory.keep(request.round, Training(adapter=trained.kept, origin=facts.origin))
        secure.hold(update, facts, request, site.config, model.spec)
        position.advance(request.round, walk.end)
    return Message(with_frame(content(reply), secure.member.handle(frame)), reply_to=message)


def _as_told(site: Site, delta: Delta) -> Delta:
    """Return what a site says that it has trained: all but false ones of a simulation say what they have."""
    if site.lie is None:
        return delta
    false = site.lie(to_arrays(dict(delta.tensors)))
    return Delta(tensors={name: array.numpy() for name, array in false.items()})


def _fine_tune(message: Message, request: TrainRequest, site: Site, model: AdaptedModel) -> Message:
    """Take the steps after the last round, of which nothing is sent."""
    start = _global_model(message, site, model, ())
    started = time.time()
    reply = reply_of(request, site, fine_tune(request, site, model, start), started)
    return Message(content(reply), reply_to=message)


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
    if rounds_a_training(site.config) > 1:
        KeptTraining(site.state_dir, site.name).forget_fitted(site.secure.spent)
    return Message(with_frame(RecordDict(), answer), reply_to=message)


def _evaluate(message: Message, site: Site) -> Message:
    request = parse(message, EvaluateRequest)
    model = site.model()
    start = _global_model(message, site, model, ())
    started = time.time()
    shared = own_adapter(site, start.adapter, before=request.round + 1)
    own = start.own or own_model(site, start.adapter, after=request.round)
    result = _tested(site, model, shared, start.side_car)
    of_own = None
    if own is not None and "personal_loss" in site.config.federation.metrics:
        of_own = _tested(site, model, own, start.side_car)
    if own is not None and request.round == site.config.federation.rounds:
        write_own_model(site, model, own, start.side_car)
    reply = EvaluateReply(
        site=site.name,
        round=request.round,
        loss=None if result is None else site.told("held_out_loss", result.loss),
        personal_loss=None if of_own is None else site.told("personal_loss", of_own.loss),
        tokens=site.told("tokens", 0 if result is None else result.tokens),
        examples=site.told("examples", len(site.held_out)),
        started=started,
        finished=time.time(),
    )
    return Message(content(reply), reply_to=message)


def _tested(site: Site, model: AdaptedModel, adapter: Adapter, side_car: Adapter) -> HeldOutLoss | None:
    """Return the held-out loss of a model; None where nothing is held out."""
    if not site.held_out:
        return None
    with placed(model, adapter, side_car):
        return held_out_loss(
            model,
            site.held_out,
            microbatch_tokens=site.config.evaluation.microbatch_tokens,
            on_microbatch=site.on_microbatch,
        )


def _global_model(
    message: Message, site: Site, model: AdaptedModel, factors: Sequence[Factor]
) -> GlobalModel:
    """Decode the adapter, and what stands beside it, that came with a message."""
    where = f"the server's message {message.metadata.message_type}"
    return read_global(arrays_of(message), site, model, factors=factors, where=where)
