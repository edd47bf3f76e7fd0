"""The round loop against real ClientApps that misbehave: each is named, and none is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedtune.aggregation.registry import aggregator
from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.errors import FederationError
from fedtune.federation.checkpoint import Checkpoint
from fedtune.federation.rounds import Federation
from fedtune.federation.wire import (
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    TrainReply,
    TrainRequest,
    content,
    parse,
)
from fedtune.models.adapter import AdapterSpec, initial_adapter
from fedtune.observability.events import (
    ClientFailed,
    ClientTrained,
    RoundAggregated,
    RoundFinished,
    read_events,
)
from fedtune.observability.run_directory import RunDirectory
from fedtune.simulation.grid import InProcessGrid

SPEC = AdapterSpec(
    shapes={"q.lora_A.weight": (2, 5), "q.lora_B.weight": (3, 2)}, scaling=2.0, dtype="float32"
)
Misbehaviour = Callable[[Message, int], Message | None]


def config(**federation: object) -> Config:
    base = compose(["experiment=demo"])
    settings = {"rounds": 2, "clients_per_round": None, "min_replies": None, "round_timeout_seconds": 60.0}
    return replace(base, federation=replace(base.federation, **settings | federation))


def arithmetic_client(misbehave: Misbehaviour) -> ClientApp:
    """A client whose delta is its number plus one, and whose loss is 10 minus that: oracles in the head."""
    app = ClientApp()

    def number_of(context: Context) -> int:
        return int(context.node_config["partition-id"])

    def hello(message: Message, context: Context) -> Message:
        number = number_of(context)
        if (wrong := misbehave(message, number)) is not None:
            return wrong
        reply = hello_reply(number)
        return Message(content(reply), reply_to=message)

    def train(message: Message, context: Context) -> Message:
        number = number_of(context)
        if (wrong := misbehave(message, number)) is not None:
            return wrong
        request = parse(message, TrainRequest)
        return Message(train_reply(number, request), reply_to=message)

    def evaluate(message: Message, context: Context) -> Message:
        number = number_of(context)
        if (wrong := misbehave(message, number)) is not None:
            return wrong
        request = parse(message, EvaluateRequest)
        reply = EvaluateReply(
            site=f"site{number}",
            round=request.round,
            loss=9.0 - number,
            tokens=3,
            examples=1,
            started=time.time(),
            finished=time.time(),
        )
        return Message(content(reply), reply_to=message)

    app.query("hello")(hello)
    app.train()(train)
    app.evaluate()(evaluate)
    return app


def hello_reply(number: int, **changed: object) -> HelloReply:
    reply = HelloReply(
        protocol=1,
        version="0",
        site=f"site{number}",
        trains=True,
        train_examples=4 * (number + 1),
        held_out_examples=1,
        skipped_rows=0,
        base_name="tiny",
        base_hash="0" * 64,
        parameters=10,
        adapter_parameters=16,
        quantization="none",
        compute_dtype="float32",
        load_seconds=0.0,
    )
    return replace(reply, **changed)


def train_reply(number: int, request: TrainRequest, **changed: object):  # type: ignore[no-untyped-def]
    value = float(changed.pop("value", number + 1))
    reply = TrainReply(
        site=f"site{number}",
        round=request.round,
        examples=4 * (number + 1),
        tokens=100,
        response_tokens=50,
        steps=1,
        loss_before=3.0,
        loss_after=2.0,
        started=time.time(),
        finished=time.time(),
        peak_memory_mib=1.0,
    )
    tensors = {
        name: Array(np.full(SPEC.shapes[name], value, dtype=np.float32))
        for name in SPEC.names(request.factors)
    }
    return content(replace(reply, **changed), ArrayRecord(tensors))


def behave(_: Message, __: int) -> None:
    return None


def run(folder: Path, config: Config, misbehave: Misbehaviour, clients: int = 3) -> Checkpoint:
    start = Checkpoint(round=0, adapter=initial_adapter(SPEC, 1))
    with RunDirectory.create(folder) as directory:
        federation = Federation(
            grid=InProcessGrid(arithmetic_client(misbehave), clients),
            config=config,
            run=directory,
            spec=SPEC,
            aggregator=aggregator(config.aggregation),
            expected_clients=clients,
        )
        return Checkpoint(round=config.federation.rounds, adapter=federation.run_rounds(start))


def failures(folder: Path) -> list[tuple[int, str, str, str]]:
    events = read_events(folder / "rounds.jsonl")
    return [(e.round, e.client, e.stage, e.code) for e in events if isinstance(e, ClientFailed)]


def test_the_adapter_moves_by_the_weighted_mean_of_the_deltas(tmp_path: Path) -> None:
    settings = config()
    settings = replace(
        settings, aggregation=replace(settings.aggregation, method="fedavg", weighting="examples")
    )
    result = run(tmp_path / "run", settings, behave)
    # Weights 4, 8, 12 and deltas 1, 2, 3: a mean of 14/6 a round, over two rounds.
    for name, start in initial_adapter(SPEC, 1).items():
        np.testing.assert_allclose(result.adapter[name], start + 2 * 14 / 6, rtol=1e-6)


def test_alternating_moves_one_factor_a_round_b_first(tmp_path: Path) -> None:
    settings = config()
    settings = replace(settings, aggregation=replace(settings.aggregation, method="alternating"))
    run(tmp_path / "run", settings, behave)
    events = read_events(tmp_path / "run" / "rounds.jsonl")
    sent = {e.round: e.uplink_bytes for e in events if isinstance(e, ClientTrained)}
    assert sent[1] < sent[2]  # B has 6 values, A has 10
    assert all(e.exact and e.aggregation_error < 1e-6 for e in events if isinstance(e, RoundAggregated))


def _nan(message: Message, number: int) -> Message | None:
    if message.metadata.message_type == "train" and number == 1:
        return Message(train_reply(number, parse(message, TrainRequest), value=np.nan), reply_to=message)
    return None


def _huge(message: Message, number: int) -> Message | None:
    if message.metadata.message_type == "train" and number == 1:
        return Message(train_reply(number, parse(message, TrainRequest), value=1e9), reply_to=message)
    return None


def _crash(message: Message, number: int) -> Message | None:
    if message.metadata.message_type == "train" and number == 1:
        raise RuntimeError("boom")
    return None


def _refuse(message: Message, number: int) -> Message | None:
    if message.metadata.message_type == "train" and number == 1:
        return Message(content(Failure(site="site1", code="FT401", reason="NaN")), reply_to=message)
    return None


def _impostor(message: Message, number: int) -> Message | None:
    if message.metadata.message_type == "train" and number == 1:
        forged = train_reply(number, parse(message, TrainRequest), site="site0")
        return Message(forged, reply_to=message)
    return None


def _other_round(message: Message, number: int) -> Message | None:
    if message.metadata.message_type == "train" and number == 1:
        return Message(train_reply(number, parse(message, TrainRequest), round=7), reply_to=message)
    return None


def _broadcastable(message: Message, number: int) -> Message | None:
    if message.metadata.message_type == "train" and number == 1:
        request = parse(message, TrainRequest)
        small = {name: Array(np.ones(1, dtype=np.float32)) for name in SPEC.names(request.factors)}
        body = parse_body(train_reply(number, request))
        return Message(content(body, ArrayRecord(small)), reply_to=message)
    return None


def parse_body(records):  # type: ignore[no-untyped-def]
    return parse(Message(records, 2, "train"), TrainReply)


MISBEHAVIOURS = [
    (_nan, "FT504"),
    (_huge, "FT511"),
    (_crash, "FT605"),
    (_refuse, "FT401"),
    (_impostor, "FT521"),
    (_other_round, "FT521"),
    (_broadcastable, "FT502"),
]


@pytest.mark.parametrize(("misbehave", "code"), MISBEHAVIOURS)
def test_a_client_that_misbehaves_is_named_and_the_quorum_goes_on_without_it(
    tmp_path: Path, misbehave: Misbehaviour, code: str
) -> None:
    settings = config(min_replies=2)
    settings = replace(
        settings, aggregation=replace(settings.aggregation, method="fedavg", weighting="uniform")
    )
    result = run(tmp_path / "run", settings, misbehave)
    assert failures(tmp_path / "run") == [(1, "site1", "train", code), (2, "site1", "train", code)]
    for name, start in initial_adapter(SPEC, 1).items():
        np.testing.assert_allclose(result.adapter[name], start + 2 * 2.0, rtol=1e-6)


@pytest.mark.parametrize(("misbehave", "code"), MISBEHAVIOURS)
def test_without_its_quorum_a_round_fails_loudly_and_names_who_failed(
    tmp_path: Path, misbehave: Misbehaviour, code: str
) -> None:
    with pytest.raises(FederationError, match=rf"FT607.*2 usable replies where 3.*site1.*{code}"):
        run(tmp_path / "run", config(), misbehave)


def test_a_slow_client_is_named_and_nobody_waits_for_it(tmp_path: Path) -> None:
    def sleep(message: Message, number: int) -> None:
        if message.metadata.message_type == "train" and number == 2:
            time.sleep(0.6)

    run(tmp_path / "run", config(min_replies=2, rounds=1, round_timeout_seconds=0.5), sleep)
    assert failures(tmp_path / "run") == [(1, "site2", "train", "FT606")]


def test_a_site_with_another_base_model_is_left_out(tmp_path: Path) -> None:
    def other_base(message: Message, number: int) -> Message | None:
        if message.metadata.message_type == "query.hello" and number == 2:
            stranger = hello_reply(number, base_hash="f" * 64)
            return Message(content(stranger), reply_to=message)
        return None

    with pytest.raises(FederationError, match="FT603"):
        run(tmp_path / "strict", config(), other_base)
    run(tmp_path / "run", config(min_replies=2), other_base)
    assert failures(tmp_path / "run") == [(0, "site2", "hello", "FT603")]


def test_two_sites_of_one_name_are_not_mixed_up(tmp_path: Path) -> None:
    def twin(message: Message, number: int) -> Message | None:
        if message.metadata.message_type == "query.hello" and number == 2:
            twin_reply = hello_reply(number, site="site0")
            return Message(content(twin_reply), reply_to=message)
        return None

    run(tmp_path / "run", config(min_replies=2), twin)
    assert [(stage, code) for _, _, stage, code in failures(tmp_path / "run")] == [("hello", "FT602")]


def test_held_out_loss_is_the_unweighted_mean_over_sites(tmp_path: Path) -> None:
    run(tmp_path / "run", config(), behave)
    events = read_events(tmp_path / "run" / "rounds.jsonl")
    assert [e.held_out_loss for e in events if isinstance(e, RoundFinished)] == [8.0, 8.0, 8.0]


def test_the_order_of_arrival_changes_nothing(tmp_path: Path) -> None:
    forward = run(tmp_path / "a", config(), behave)

    class Backwards(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            return reversed(list(super().send_and_receive(messages, timeout=timeout)))

    with RunDirectory.create(tmp_path / "b") as directory:
        backward = Federation(
            grid=Backwards(arithmetic_client(behave), 3),
            config=config(),
            run=directory,
            spec=SPEC,
            aggregator=aggregator(config().aggregation),
            expected_clients=3,
        ).run_rounds(Checkpoint(round=0, adapter=initial_adapter(SPEC, 1)))
    for name in SPEC.shapes:
        np.testing.assert_array_equal(forward.adapter[name], backward[name], strict=True)


def test_a_reply_that_comes_twice_counts_once(tmp_path: Path) -> None:
    class Echo(InProcessGrid):
        def send_and_receive(self, messages, *, timeout=None):  # type: ignore[no-untyped-def]
            for reply in super().send_and_receive(messages, timeout=timeout):
                yield reply
                yield reply

    with RunDirectory.create(tmp_path / "run") as directory:
        Federation(
            grid=Echo(arithmetic_client(behave), 3),
            config=config(),
            run=directory,
            spec=SPEC,
            aggregator=aggregator(config().aggregation),
            expected_clients=3,
        ).run_rounds(Checkpoint(round=0, adapter=initial_adapter(SPEC, 1)))
    trained = [e for e in read_events(tmp_path / "run" / "rounds.jsonl") if isinstance(e, ClientTrained)]
    assert len(trained) == 6
