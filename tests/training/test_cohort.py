"""Clients that are trained together get what each would get alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import random_rows, start_of, tiny_adapted, training_config

from fedtune.errors import TrainingError
from fedtune.training.cohort import train_cohort
from fedtune.training.course import Assignment
from fedtune.training.train import train

PREFIX = (3, 1, 4, 1, 5)
BOTH = ("A", "B")


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    """Give the tiny model with these settings of `tiny_adapted`, loaded once each."""
    return cache(lambda **settings: tiny_adapted(tiny_model_dir, **settings))


def steps_of(seed, count, rows):
    stream = np.random.default_rng(seed)
    shapes = [
        [(int(stream.integers(1, 10)), int(stream.integers(1, 10))) for _ in range(rows)]
        for _ in range(count)
    ]
    return [random_rows(seed * 100 + step, each, PREFIX) for step, each in enumerate(shapes)]


def assigned(model, client, *, steps=2, rows=2, factors=BOTH, **changed):
    config = training_config(**changed.pop("config", {}))
    return Assignment(
        adapter=changed.pop("adapter", None) or start_of(model, client),
        steps=changed.pop("rows_of_steps", None) or steps_of(client, steps, rows),
        config=config,
        factors=factors,
        first_step=1,
        total_steps=8,
        seed=client,
        **changed,
    )


def alone(model, assignment):
    model.load_adapter(assignment.adapter)
    return train(
        model,
        assignment.steps,
        config=assignment.config,
        factors=assignment.factors,
        first_step=assignment.first_step,
        total_steps=assignment.total_steps,
        seed=assignment.seed,
        moments=assignment.moments,
        pulled_to=assignment.pulled_to,
        correction=assignment.correction,
        on_step=assignment.on_step,
    )


def assert_same(found, wanted, tolerance=1e-9):
    def close(one, other):
        assert one.keys() == other.keys()
        for name, values in other.items():
            np.testing.assert_allclose(one[name], values, rtol=0, atol=tolerance, err_msg=name)

    close(found.delta.tensors, wanted.delta.tensors)
    close(found.adapter, wanted.adapter)
    close(found.mean_gradients, wanted.mean_gradients)
    assert (found.moments is None) == (wanted.moments is None)
    if wanted.moments is not None:
        close(found.moments, wanted.moments)
    assert found.loss_before == pytest.approx(wanted.loss_before, rel=1e-10)
    assert found.loss_after == pytest.approx(wanted.loss_after, rel=10 * tolerance)
    for name in ("examples", "tokens", "response_tokens", "steps"):
        assert getattr(found, name) == getattr(wanted, name)


@settings(max_examples=8)
@given(data=st.data())
def test_results_are_those_of_each_client_alone(tiny, data):
    draw = data.draw
    model = tiny(
        dropout=draw(st.sampled_from([0.0, 0.3]), label="dropout"),
        gradient_checkpointing=draw(st.booleans(), label="checkpointing"),
    )
    factors = draw(st.sampled_from([BOTH, ("A",), ("B",)]), label="factors")
    config = {
        "optimizer": draw(st.sampled_from(["adamw", "adamw8bit", "sgd"])),
        "packing": draw(st.booleans(), label="packing"),
        "microbatch_tokens": draw(st.sampled_from([8, 30, 2048])),
        "max_gradient_norm": draw(st.sampled_from([None, 0.3])),
        "proximal_mu": draw(st.sampled_from([0.0, 2.0])),
        "weight_decay": draw(st.sampled_from([0.0, 0.1])),
        "decay": "cosine",
        "keep_optimizer_state": draw(st.booleans(), label="keeps"),
    }
    corrected, pulled = draw(st.booleans(), label="corrected"), draw(st.booleans(), label="pulled")
    together = []
    for client in range(draw(st.integers(1, 4), label="clients")):
        drift = {name: 0.01 * value for name, value in start_of(model, client + 50).items()}
        together.append(
            assigned(
                model,
                client,
                steps=draw(st.integers(1, 3)),
                rows=draw(st.integers(1, 3)),
                factors=factors,
                config=config,
                pulled_to=start_of(model, 99) if pulled else None,
                correction=drift if corrected else None,
            )
        )
    for found, assignment in zip(train_cohort(model, together), together, strict=True):
        assert_same(found, alone(model, assignment))


@pytest.mark.parametrize(
    "settings_of_model",
    [
        {"compute_dtype": "float32"},
        {"compute_dtype": "float32", "quantization": "nf4"},
        {"compute_dtype": "bfloat16", "quantization": "nf4", "dropout": 0.2},
        {"compute_dtype": "float32", "quantization": "int8"},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_quantized_bases_and_short_types_agree_to_their_rounding(tiny, settings_of_model):
    model = tiny(**settings_of_model)
    together = [assigned(model, client, rows=client + 1) for client in range(3)]
    for found, assignment in zip(train_cohort(model, together), together, strict=True):
        wanted = alone(model, assignment)
        one, other = (
            np.concatenate([values.ravel() for values in result.delta.tensors.values()])
            for result in (found, wanted)
        )
        assert np.linalg.norm(one - other) <= 1e-3 * np.linalg.norm(other)


def test_moments_go_on_where_each_client_stopped(tiny):
    model = tiny()
    config = {"keep_optimizer_state": True}
    before = [alone(model, assigned(model, client, steps=1 + client, config=config)) for client in range(3)]
    together = [
        assigned(model, client, config=config, adapter=result.adapter, moments=result.moments)
        for client, result in enumerate(before)
    ]
    for found, assignment in zip(train_cohort(model, together), together, strict=True):
        assert_same(found, alone(model, assignment))


def test_every_client_is_told_its_own_steps(tiny):
    model, told, wanted = tiny(), {0: [], 1: []}, {0: [], 1: []}
    together = [assigned(model, client, steps=2 - client, on_step=told[client].append) for client in (0, 1)]
    train_cohort(model, together)
    for client in (0, 1):
        alone(model, assigned(model, client, steps=2 - client, on_step=wanted[client].append))
        assert len(told[client]) == 2 - client
        for found, expected in zip(told[client], wanted[client], strict=True):
            assert (found.step, found.steps, found.tokens) == (expected.step, expected.steps, expected.tokens)
            assert found.learning_rate == expected.learning_rate
            assert found.loss == pytest.approx(expected.loss, rel=1e-9)
            assert found.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-9)
            assert found.tokens_per_second > 0


@pytest.mark.parametrize("spoilt", [0, 1, 2])
def test_a_loss_that_is_no_number_fails_its_client_alone(tiny, spoilt):
    model = tiny()
    together = [assigned(model, client) for client in range(3)]
    name = model.spec.names(("B",))[0]
    together[spoilt].adapter[name][0, 0] = np.nan
    results = train_cohort(model, together)
    with pytest.raises(TrainingError, match="FT402: the loss is nan in step 1 of 2") as wanted:
        alone(model, together[spoilt])
    assert isinstance(results[spoilt], TrainingError)
    assert results[spoilt].problems == wanted.value.problems
    for client in {0, 1, 2} - {spoilt}:
        assert_same(results[client], alone(model, together[client]))


def test_a_gradient_that_overflows_fails_its_client_alone(tiny):
    model = tiny(compute_dtype="float32")
    together = [assigned(model, client) for client in range(3)]
    for name in model.spec.names(("A",)):
        together[1].adapter[name] *= 1e-30
    for name in model.spec.names(("B",)):
        together[1].adapter[name] *= 1e33
    with pytest.raises(TrainingError, match="FT403: the gradient norm is inf in step 1 of 2") as wanted:
        alone(model, together[1])
    results = train_cohort(model, together)
    assert isinstance(results[1], TrainingError)
    assert results[1].problems == wanted.value.problems
    for client in (0, 2):
        assert_same(results[client], alone(model, together[client]), tolerance=1e-5)


def test_it_repeats_bit_for_bit_and_leaves_the_model_and_torch_as_they_were(tiny):
    model = tiny(compute_dtype="float32", dropout=0.3)
    model.load_adapter(start_of(model, 7))
    model.model.eval()
    together = [assigned(model, client, steps=client + 1) for client in range(2)]
    torch.manual_seed(1)
    state, attention = torch.random.get_rng_state(), model.model.config._attn_implementation
    first, second = train_cohort(model, together), train_cohort(model, together)
    for one, other in zip(first, second, strict=True):
        for name, values in one.adapter.items():
            np.testing.assert_array_equal(values, other.adapter[name])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.model.config._attn_implementation == attention
    assert not any(module.training for module in model.model.modules())
    assert not any("forward" in vars(module) for module in model.model.modules())
    for name, values in start_of(model, 7).items():
        np.testing.assert_array_equal(model.read_adapter()[name], values)
    model.model.train()


def test_what_stands_beside_the_adapter_is_beside_all(tiny):
    model = tiny()
    beside = {name: 0.3 * values for name, values in start_of(model, 3).items()}
    together = [assigned(model, client) for client in range(2)]
    model.set_side_car(beside)
    try:
        wanted = [alone(model, assignment) for assignment in together]
        found = train_cohort(model, together)
    finally:
        model.set_side_car({})
    for one, other in zip(found, wanted, strict=True):
        assert_same(one, other)
    assert abs(wanted[0].loss_before - alone(model, together[0]).loss_before) > 1e-6


def test_a_step_without_targets_is_refused(tiny):
    model = tiny()
    rows = steps_of(0, 1, 1)
    rows[0][0].loss_mask[:] = False
    with pytest.raises(ValueError, match="got 1 rows without one"):
        train_cohort(model, [assigned(model, 0, rows_of_steps=rows), assigned(model, 1)])
    with pytest.raises(ValueError, match="at least one step, got none"):
        replace(assigned(model, 0), steps=[])
