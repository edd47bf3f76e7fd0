"""The loss on the response and its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_model import make_tiny_model
from support.training import gradients, random_rows, tiny_adapted
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from fedtune.models.layers import norms_in_float64
from fedtune.training import loss as loss_module
from fedtune.training.batches import lay_out
from fedtune.training.loss import ResponseLoss

PREFIX = (9, 8, 7, 6, 5)
SHAPES = [(4, 6), (9, 3), (2, 14), (6, 1), (1, 1), (11, 8)]


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    return tiny_adapted(tiny_model_dir)


def reference(model, rows):
    """Each row alone, all its logits, labels of -100 where nothing counts: the sum of nats, its gradients.

    transformers' own loss would round the logits of a float64 model to float32.
    """
    total = 0.0
    for row in rows:
        ids = torch.from_numpy(row.token_ids).long()[None]
        labels = ids.masked_fill(~torch.from_numpy(row.loss_mask)[None], -100)
        logits = model.model(input_ids=ids, use_cache=False).logits
        nats = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")
        nats.backward()
        total += float(nats.detach())
    return total, gradients(model)


def ours(model, rows, **layout):
    loss = ResponseLoss(model.model)
    total = 0.0
    for batch in lay_out(rows, **layout):
        value = loss(batch)
        value.backward()
        total += float(value.detach())
    return total, gradients(model)


def assert_equal(found, wanted, tolerance=1e-10):
    assert found[0] == pytest.approx(wanted[0], rel=tolerance)
    assert found[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        scale = max(1.0, float(gradient.abs().max()))
        assert float((found[1][name] - gradient).abs().max()) <= tolerance * scale, name


LAYOUTS = [(True, True), (True, False), (False, False)]


@pytest.mark.parametrize(("packing", "share_prefix"), LAYOUTS)
@pytest.mark.parametrize("microbatch_tokens", [1, 30, 4096])
@pytest.mark.parametrize("prefix", [(), PREFIX])
def test_every_layout_has_the_loss_and_the_gradients_of_row_by_row(
    tiny, packing, share_prefix, microbatch_tokens, prefix
):
    rows = random_rows(1, SHAPES, prefix)
    found = ours(tiny, rows, microbatch_tokens=microbatch_tokens, packing=packing, share_prefix=share_prefix)
    assert_equal(found, reference(tiny, rows))


@pytest.mark.parametrize(("packing", "share_prefix"), LAYOUTS)
def test_a_single_row_has_its_own_loss_and_gradients(tiny, packing, share_prefix):
    rows = random_rows(2, [(3, 5)])
    found = ours(tiny, rows, microbatch_tokens=64, packing=packing, share_prefix=share_prefix)
    assert_equal(found, reference(tiny, rows))


@given(
    shapes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4),
    prefix=st.lists(st.integers(0, 255), max_size=8).map(tuple),
    budget=st.integers(1, 80),
    layout=st.sampled_from(LAYOUTS),
    seed=st.integers(0, 999),
)
@settings(max_examples=15, deadline=None)
def test_no_rows_and_no_budget_change_the_sum(tiny, shapes, prefix, budget, layout, seed):
    rows = random_rows(seed, shapes, prefix)
    packing, share = layout
    found = ours(tiny, rows, microbatch_tokens=budget, packing=packing, share_prefix=share)
    assert_equal(found, reference(tiny, rows))


def test_plain_text_shares_targets_within_the_prefix(tiny):
    rows = random_rows(4, [(0, 6), (0, 9), (0, 3)], PREFIX)
    for row in rows:
        row.loss_mask[1:] = True
    found = ours(tiny, rows, microbatch_tokens=99, packing=True, share_prefix=True)
    assert_equal(found, reference(tiny, rows))


def test_chunks_of_places_add_up(tiny, monkeypatch):
    rows = random_rows(1, SHAPES)
    wanted = ours(tiny, rows, microbatch_tokens=4096, packing=True, share_prefix=True)
    monkeypatch.setattr(loss_module, "_CHUNK", 4)
    assert_equal(ours(tiny, rows, microbatch_tokens=4096, packing=True, share_prefix=True), wanted)


def test_the_logits_of_all_places_are_never_alive_at_once(tiny, monkeypatch):
    monkeypatch.setattr(loss_module, "_CHUNK", 4)
    seen = []
    head = tiny.model.get_base_model().get_output_embeddings()
    hook = head.register_forward_hook(lambda _, __, output: seen.append(output.numel()))
    ours(tiny, random_rows(1, SHAPES), microbatch_tokens=4096, packing=True, share_prefix=True)
    hook.remove()
    vocabulary = head.weight.shape[0]
    assert max(seen) <= 4 * vocabulary
    assert sum(seen) == sum(response for _, response in SHAPES) * vocabulary


def test_gradient_checkpointing_changes_nothing(tiny, tiny_model_dir):
    rows = random_rows(1, SHAPES, PREFIX)
    recomputing = tiny_adapted(tiny_model_dir, gradient_checkpointing=True)
    layout = {"microbatch_tokens": 40, "packing": True, "share_prefix": True}
    assert_equal(ours(recomputing, rows, **layout), ours(tiny, rows, **layout), tolerance=1e-12)


def test_eager_attention_takes_the_same_masks(tiny, tiny_model_dir):
    rows = random_rows(1, SHAPES, PREFIX)
    eager = tiny_adapted(tiny_model_dir)
    eager.model.get_base_model().set_attn_implementation("eager")
    assert ResponseLoss(eager.model).shares_prefix
    found = ours(eager, rows, microbatch_tokens=99, packing=True, share_prefix=True)
    assert_equal(found, reference(tiny, rows), tolerance=1e-5)  # its softmax is in float32


def test_cross_entropy_is_in_float32_for_16_bit_models(tiny_model_dir):
    half = tiny_adapted(tiny_model_dir, compute_dtype="bfloat16")
    rows = random_rows(1, SHAPES)
    (batch,) = lay_out(rows, microbatch_tokens=4096, packing=True, share_prefix=True)
    with torch.no_grad():
        logits = half.model(
            input_ids=torch.from_numpy(batch.token_ids),
            position_ids=torch.from_numpy(batch.position_ids),
            use_cache=False,
        ).logits[0, batch.target_places]
    assert logits.dtype == torch.bfloat16
    wanted = torch.nn.functional.cross_entropy(
        logits.double(), torch.from_numpy(batch.target_ids), reduction="sum"
    )
    with torch.no_grad():
        assert float(ResponseLoss(half.model)(batch)) == pytest.approx(float(wanted), rel=1e-6)


class _Wrapped:
    """A plain model with the one attribute of an `AdaptedModel` that the helpers use."""

    def __init__(self, model):
        self.model = model

    def parameters(self):
        return dict(self.model.named_parameters())


def small(config_class, model_class, **overrides):
    fields = {
        "vocab_size": 260,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 256,
    }
    torch.manual_seed(0)
    model = model_class(config_class(**(fields | overrides))).double()
    norms_in_float64(model)
    return _Wrapped(model)


def freeze_head(model):
    for parameter in (model.model.lm_head.weight, model.model.model.embed_tokens.weight):
        parameter.requires_grad_(False)
    model.parameters = lambda: {
        name: parameter for name, parameter in model.model.named_parameters() if parameter.requires_grad
    }


def test_logits_that_are_capped_after_the_head_keep_their_cap():
    model = small(
        Gemma2Config,
        Gemma2ForCausalLM,
        final_logit_softcapping=0.5,
        attn_logit_softcapping=None,
        attn_implementation="eager",
        sliding_window=64,
    )
    freeze_head(model)
    loss = ResponseLoss(model.model)
    assert loss.packs
    assert not loss.shares_prefix
    rows = random_rows(1, SHAPES, PREFIX)
    found = ours(model, rows, microbatch_tokens=99, packing=True, share_prefix=False)
    assert_equal(found, reference(model, rows), tolerance=1e-5)  # norms and softmax are in float32


def test_a_sliding_window_stays_within_the_row():
    model = small(MistralConfig, MistralForCausalLM, sliding_window=6)
    freeze_head(model)
    loss = ResponseLoss(model.model)
    assert loss.packs
    assert not loss.shares_prefix
    rows = random_rows(1, SHAPES, PREFIX)
    found = ours(model, rows, microbatch_tokens=99, packing=True, share_prefix=False)
    assert_equal(found, reference(model, rows))


def test_a_head_that_is_trained_gets_its_gradient(tmp_path):
    folder = make_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
    model = _Wrapped(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64))
    norms_in_float64(model.model)
    rows = random_rows(1, SHAPES)
    found = ours(model, rows, microbatch_tokens=99, packing=True, share_prefix=True)
    assert "lm_head.weight" in found[1]
    assert_equal(found, reference(model, rows))
