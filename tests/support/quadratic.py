"""Sites whose training is one step of gradient descent on a quadratic: oracles without a model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message
from flwr.clientapp import ClientApp

from fedtune.config.compose import compose
from fedtune.config.schema import Config
from fedtune.federation.downlink import with_own_apart
from fedtune.federation.wire import (
    EvaluateReply,
    EvaluateRequest,
    HelloReply,
    TrainReply,
    TrainRequest,
    arrays_of,
    content,
    parse,
)
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec
from fedtune.updates.codec import from_arrays

__all__ = ["SPEC", "STEP", "own_pace", "quadratic_client", "update_of"]

SPEC = AdapterSpec(
    shapes={"q.lora_A.weight": (2, 5), "q.lora_B.weight": (3, 2)}, scaling=2.0, dtype="float32"
)
STEP = 0.25

Asked = Callable[[int, TrainRequest], None]
Update = Callable[[int, Adapter, int], Adapter]
Loss = Callable[[int, Adapter], float]


def own_pace(*overrides: str, **seconds: float) -> Config:
    """Return a configuration of FedBuff, in a simulation whose sites take so many seconds for a training."""
    given = ", ".join(f"{site}: {value}" for site, value in seconds.items())
    composed = compose(
        [
            "experiment=demo",
            "asynchronous=fedbuff",
            "speed=equal",
            f"speed.sites={{{given}}}",
            "training.steps_per_round=1",
            *overrides,
        ]
    )
    return replace(composed, partition=replace(composed.partition, values=()))


def update_of(number: int, received: Adapter, training: int) -> Adapter:
    """Return what site ``number`` makes of an adapter: a step to a centre that moves with its trainings."""
    centre = np.float32(number + 1) + np.float32(0.125) * np.float32(training)
    return {name: np.float32(STEP) * (centre - tensor) for name, tensor in received.items()}


def loss_of(number: int, received: Adapter) -> float:
    return sum(float(np.sum((tensor - (number + 1)) ** 2)) for tensor in received.values())


def quadratic_client(
    asked: Asked = lambda *_: None,
    *,
    update: Update = update_of,
    loss: Loss = loss_of,
    numbers: Sequence[int] | None = None,
) -> ClientApp:
    """Sites of 4, 8, 12, … examples that train as `update_of` says.

    Args:
        asked: Told of every request to train before it is answered; what it raises, the site does.
        update: What a site makes of an adapter in a round.
        loss: Of a site, of an adapter.
        numbers: The site at each node; None for their order.
    """
    app = ClientApp()

    def number_of(context: Context) -> int:
        partition = int(context.node_config["partition-id"])
        return partition if numbers is None else numbers[partition]

    def hello(message: Message, context: Context) -> Message:
        number = number_of(context)
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
        return Message(content(reply), reply_to=message)

    def train(message: Message, context: Context) -> Message:
        number, request = number_of(context), parse(message, TrainRequest)
        asked(number, request)
        received = from_arrays(arrays_of(message), SPEC, FACTORS, where="test")
        made = update(number, received, request.round)
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
        tensors = {name: Array(made[name]) for name in SPEC.names(request.factors)}
        return Message(content(reply, ArrayRecord(tensors)), reply_to=message)

    def evaluate(message: Message, context: Context) -> Message:
        number, request = number_of(context), parse(message, EvaluateRequest)
        record, own = with_own_apart(arrays_of(message), SPEC, where="test")
        received = from_arrays(record, SPEC, FACTORS, where="test")
        reply = EvaluateReply(
            site=f"site{number}",
            round=request.round,
            loss=loss(number, received),
            personal_loss=loss(number, own) if own else None,
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
