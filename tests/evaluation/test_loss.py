"""The held-out loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.training import random_rows, start_of, tiny_adapted

from fedtune.data.tokenize import TokenizedExample
from fedtune.errors import TrainingError
from fedtune.evaluation.loss import held_out_loss

SHAPES = [(4, 6), (9, 3), (2, 14), (6, 1), (1, 1), (11, 8)]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    return tiny_adapted(tiny_model_dir)


def reference(model, rows):
    nats, tokens = 0.0, 0
    for row in rows:
        with torch.no_grad():
            logits = model.model(input_ids=torch.from_numpy(row.token_ids).long()[None]).logits[0]
        chances = torch.log_softmax(logits, dim=-1)
        for place in np.flatnonzero(row.loss_mask):
            nats -= float(chances[place - 1, row.token_ids[place]])
            tokens += 1
    return nats / tokens, tokens


def test_it_is_the_mean_over_all_response_tokens_of_all_rows(tiny):
    rows = random_rows(0, SHAPES, prefix=(1, 2, 3))
    found = held_out_loss(tiny, rows, microbatch_tokens=64)
    wanted, tokens = reference(tiny, rows)
    assert found.loss == pytest.approx(wanted, rel=1e-12)
    assert (found.tokens, found.examples) == (tokens, len(rows))
    assert found.seconds > 0


@given(budget=st.integers(1, 300), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_microbatch_size_does_not_change_it(tiny, budget, seed):
    rows = random_rows(seed, SHAPES, prefix=(1, 2, 3))
    found = held_out_loss(tiny, rows, microbatch_tokens=budget)
    assert found.loss == pytest.approx(held_out_loss(tiny, rows, microbatch_tokens=10_000).loss, rel=1e-12)


def test_dropout_is_off_and_nothing_changes(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir, dropout=0.5)
    model.load_adapter(start_of(model, 3))
    rows = random_rows(0, SHAPES)
    before = model.read_adapter()
    modes = [module.training for module in model.model.modules()]
    state = torch.random.get_rng_state()
    first = held_out_loss(model, rows, microbatch_tokens=64)
    assert first.loss == held_out_loss(model, rows, microbatch_tokens=64).loss
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in model.model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters().values())
    for name, values in model.read_adapter().items():
        np.testing.assert_array_equal(values, before[name])


def test_an_adapter_that_diverged_is_an_error(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir)
    adapter = start_of(model)
    name = model.spec.names(("B",))[0]
    adapter[name] = np.full_like(adapter[name], np.inf)
    model.load_adapter(adapter)
    with pytest.raises(TrainingError, match=r"FT404: the held-out loss over 1 rows is nan"):
        held_out_loss(model, random_rows(0, [(3, 3)]), microbatch_tokens=64)


@pytest.mark.parametrize("count", [0, 2])
def test_without_a_response_token_there_is_no_mean(tiny, count):
    empty = TokenizedExample(
        id="r", token_ids=np.arange(4, dtype=np.int32), loss_mask=np.zeros(4, dtype=bool)
    )
    with pytest.raises(ValueError, match=f"got {count} rows without one"):
        held_out_loss(tiny, [empty] * count, microbatch_tokens=64)
