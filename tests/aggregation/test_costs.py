"""Costs from shapes against what really travels and what is really held."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import pytest
from support.adapters import random_adapter, random_delta, small_spec

from fedtune.aggregation.costs import costs
from fedtune.aggregation.registry import aggregator
from fedtune.config.compose import compose
from fedtune.config.methods import METHODS
from fedtune.models.adapter import AdapterSpec
from fedtune.updates.codec import to_arrays, wire_bytes
from fedtune.updates.encode import encode
from fedtune.updates.protect import protect

SPEC = small_spec(((512, 256), (256, 512)), rank=8)
PLAIN = [name for name, known in METHODS.items() if not known.sketches and known.peft_method == "lora"]


@pytest.mark.parametrize("updates", ["exact", "int8", "int4"])
@pytest.mark.parametrize("method", PLAIN)
def test_uplink_is_what_the_schedule_sends(method: str, updates: str) -> None:
    config = compose([f"aggregation={method}", f"updates={updates}", "updates.error_feedback=false"])
    rounds = len(METHODS[method].schedule)
    built = aggregator(config.aggregation)
    sent = [
        to_arrays(
            encode(protect(random_delta(SPEC, number, factors=built.factors(number))), config.updates)[0]
        )
        for number in range(1, rounds + 1)
    ]
    names = sum(len(name) for record in sent for name in record)
    headers = 128 * sum(len(record) for record in sent)  # of numpy's format
    exact = (sum(wire_bytes(record) for record in sent) - names - headers) / rounds
    assert costs(config, SPEC, 10).uplink_bytes == exact


@pytest.mark.parametrize("method", ["fedavg", "ffa", "svd", "fedex", "flora", "projection"])
def test_memory_is_an_upper_bound_that_is_not_far_away(method: str) -> None:
    config = compose([f"aggregation={method}"])
    built, received = aggregator(config.aggregation), random_adapter(SPEC, 0)
    found = costs(config, SPEC, 10)

    def peak() -> int:
        tracemalloc.start()
        accumulator = built.start(received)
        for i in range(10):
            accumulator.add(random_delta(SPEC, i, factors=built.factors(1)), 1.0)
        if not found.streams:
            accumulator.result()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert found.server_memory_bytes / 3 <= peak() <= 2 * found.server_memory_bytes


def test_what_streams_costs_the_same_memory_for_any_number_of_clients() -> None:
    for method, known in METHODS.items():
        config = compose([f"aggregation={method}"])
        few, many = (costs(config, SPEC, clients) for clients in (10, 200))
        assert few.streams == (known.summable or known.sketches)
        assert (many.server_memory_bytes == few.server_memory_bytes) == few.streams
        assert many.server_flops > few.server_flops


def test_a_defence_holds_every_update_and_an_optimizer_its_states() -> None:
    base = compose(["aggregation=fedavg"])
    plain = costs(base, SPEC, 10)
    defended = costs(replace(base, defence=compose(["defence=median"]).defence), SPEC, 10)
    adam = costs(
        replace(base, server_optimizer=compose(["server_optimizer=fedadam"]).server_optimizer), SPEC, 10
    )
    assert not defended.streams
    assert adam.server_memory_bytes - plain.server_memory_bytes == 2 * 8 * SPEC.parameters()


def test_a_side_car_grows_to_its_limit_and_never_past_a_full_matrix() -> None:
    def down(*overrides: str) -> int:
        return costs(compose(["aggregation=fedex", *overrides]), SPEC, 10).downlink_bytes

    def of_rank(spec: AdapterSpec, rank: int) -> int:
        return spec.nbytes() + spec.with_rank(rank).nbytes()

    assert down("aggregation.side_car_rank=5") == of_rank(SPEC, 5)
    assert down("aggregation.side_car_rank=null", "federation.rounds=2") == of_rank(SPEC, 160)
    assert down("aggregation.side_car_rank=null", "federation.rounds=50") == of_rank(SPEC, 256)
