"""Quantized updates in a whole simulated run: fewer bytes, nearly the same adapter, all promises kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from math import ceil, prod
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file
from simulation.test_simulate import adapter, assert_equal_bit_for_bit, run_in_process, wait_for

import fedtune
from fedtune.aggregation.registry import aggregator
from fedtune.config.compose import compose
from fedtune.errors import ConfigError
from fedtune.federation.client import build_client_app
from fedtune.federation.requests import train_request
from fedtune.federation.residual_memory import ResidualMemory
from fedtune.federation.wire import TrainReply, arrays_of, content, parse
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import initial_adapter
from fedtune.observability.events import ClientTrained, read_events
from fedtune.simulation.grid import InProcessGrid
from fedtune.simulation.sites import load_sites
from fedtune.updates.codec import to_arrays

Overrides = Callable[..., list[str]]
QUIET = {"evaluation__generations": 0}
SETTINGS = [("int8", "true"), ("int8", "false"), ("int4", "true"), ("int4", "false")]


def distance(one: Path, other: Path) -> float:
    first, second = adapter(one), adapter(other)
    squared = sum(float(np.square(first[name] - second[name]).sum()) for name in first)
    return float(np.sqrt(squared / sum(float(np.square(value).sum()) for value in first.values())))


@pytest.fixture
def exact(tiny_overrides: Overrides) -> fedtune.Run:
    return fedtune.simulate(tiny_overrides(name="exact", **QUIET))


def test_few_bits_give_nearly_the_adapter_of_many(tiny_overrides: Overrides, exact: fedtune.Run) -> None:
    far = {}
    for kind, feedback in SETTINGS:
        run = fedtune.simulate(
            tiny_overrides(name=f"{kind}-{feedback}", updates=kind, updates__error_feedback=feedback, **QUIET)
        )
        losses, expected = run.summary["held_out_loss"], exact.summary["held_out_loss"]
        assert losses["federated"] < losses["base"]
        assert losses["federated"] == pytest.approx(expected["federated"], rel=0.02)
        far[kind, feedback] = distance(exact.path, run.path)
        assert 0 < far[kind, feedback] < 0.2
    assert far["int8", "true"] < far["int4", "true"] / 4


@pytest.mark.parametrize(("kind", "bytes_of"), [("int8", lambda n: n), ("int4", lambda n: ceil(n / 2))])
def test_the_recorded_bytes_are_those_that_travelled(
    tiny_overrides: Overrides, kind: str, bytes_of: Callable[[int], int]
) -> None:
    run = fedtune.simulate(tiny_overrides(updates=kind, aggregation="alternating", **QUIET))
    spec = adapter_spec(run.config.model, run.config.peft)
    sent = {
        (event.round, event.client): event.uplink_bytes
        for event in read_events(run.path / "rounds.jsonl")
        if isinstance(event, ClientTrained)
    }
    assert len(sent) == 6
    for (round_number, _), uplink in sent.items():
        sizes = [prod(spec.shapes[name]) for name in spec.names("B" if round_number == 1 else "A")]
        values = sum(bytes_of(n) + 4 * ceil(n / 64) for n in sizes)
        assert uplink == values + 2 * 128 + len("codes") + len("scales")
    card = (run.adapter_dir / "README.md").read_text(encoding="utf-8")
    assert f"| updates on the wire | {kind}, a scale for 64 values, with error feedback |" in card


@pytest.mark.parametrize("method", ["alternating", "ffa"])
def test_exact_methods_stay_exact_for_what_arrived(tiny_overrides: Overrides, method: str) -> None:
    summary = fedtune.simulate(tiny_overrides(updates="int4", aggregation=method, **QUIET)).summary
    assert summary["aggregation_error"] <= 1e-6


def test_a_finished_run_keeps_no_residuals_and_an_unfinished_one_does(
    tiny_overrides: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[set[str]] = []
    forget = ResidualMemory.forget

    def looked_at(state_dir: Path) -> None:
        kept.append({f"{path.parent.name}/{path.name}" for path in state_dir.glob("*.residual/*")})
        forget(state_dir)

    monkeypatch.setattr(ResidualMemory, "forget", staticmethod(looked_at))
    run = fedtune.simulate(tiny_overrides(updates="int4", **QUIET))
    assert kept == [
        {f"{site}.residual/00000{n}.safetensors" for site in ("ear", "eye", "heart") for n in (1, 2)}
    ]
    assert list((run.path / "sites").glob("*.residual")) == []


def test_a_round_that_is_asked_for_again_gives_the_same_bytes(tiny_overrides: Overrides) -> None:
    config = compose(tiny_overrides(updates="int4", **QUIET))
    sites = load_sites(config)
    app = build_client_app(lambda context: sites.site(int(context.node_config["partition-id"])))
    grid = InProcessGrid(app, len(sites))
    node = next(iter(grid.get_node_ids()))
    spec = adapter_spec(config.model, config.peft)
    start = initial_adapter(spec, config.seed)

    def asked(round_number: int) -> dict[str, bytes]:
        request = train_request(config, aggregator(config.aggregation), round_number)
        message = Message(content(request, to_arrays(start)), node, "train")
        [reply] = grid.send_and_receive([message], timeout=60)
        assert parse(reply, TrainReply).round == round_number
        return {name: array.data for name, array in arrays_of(reply).items()}

    first, second = asked(1), asked(2)
    assert set(first) == {"codes", "scales"}
    assert first != second
    assert asked(2) == second
    assert asked(1) == first, "the server went back to its last checkpoint"
    assert asked(2) == second
    (last,) = Path(config.runs_dir, config.name, "sites").glob("*.residual/000002.safetensors")
    residual = load_file(last)
    assert set(residual) == set(spec.shapes)
    assert any(tensor.any() for tensor in residual.values())


KILL_AT = ['"round":1,"client":"eye"', '"event":"round_aggregated"', '"round":3,"client":"heart"']


@pytest.mark.e2e
@pytest.mark.parametrize("moment", KILL_AT[:: 1 if os.environ.get("FEDTUNE_ALL_KILLS") else 2])
def test_a_quantized_run_killed_at_any_instant_ends_with_the_same_adapter(
    tiny_overrides: Overrides, moment: str
) -> None:
    settings = {"federation__rounds": 3, "aggregation": "alternating", "updates": "int4", **QUIET}
    whole = fedtune.simulate(tiny_overrides(name="whole", **settings)).path
    log = whole.parent / "killed" / "rounds.jsonl"
    process = run_in_process(tiny_overrides(name="killed", **settings))
    wait_for(log, moment, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed = fedtune.simulate(tiny_overrides(name="killed", resume="true", **settings))
    assert_equal_bit_for_bit(whole, killed.path)


@pytest.mark.e2e
def test_ray_and_in_process_give_the_same_quantized_run(tiny_overrides: Overrides) -> None:
    here = fedtune.simulate(tiny_overrides(name="here", updates="int4", **QUIET))
    there = fedtune.simulate(tiny_overrides(name="there", updates="int4", backend="ray", **QUIET))
    assert_equal_bit_for_bit(here.path, there.path)


def test_quantized_updates_and_secure_aggregation_are_refused_together(tiny_overrides: Overrides) -> None:
    with pytest.raises(ConfigError, match=r"secagg\.ring_bits=16") as caught:
        fedtune.simulate(tiny_overrides(secagg="on", secagg__k_min=3, updates="int8"))
    assert caught.value.problems[0].where == "updates.quantization, secagg.enabled"
