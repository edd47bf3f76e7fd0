"""The attention kernel of short sequences in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from support.training import gradients, random_rows, tiny_adapted

from fedtune.training.attention import attention_for
from fedtune.training.batches import lay_out
from fedtune.training.loss import ResponseLoss

SHAPES = [(4, 6), (9, 3), (2, 14), (6, 1)]


def kernel(model):
    return model.model.config._attn_implementation


@pytest.mark.parametrize(
    ("compute_dtype", "tokens", "expected"),
    [("bfloat16", 256, "eager"), ("bfloat16", 257, "sdpa"), ("float32", 16, "sdpa"), ("float64", 16, "sdpa")],
)
def test_only_short_sequences_in_bfloat16_change_their_kernel(
    tiny_model_dir, compute_dtype, tokens, expected
):
    model = tiny_adapted(tiny_model_dir, compute_dtype=compute_dtype)
    with attention_for(model.model, tokens):
        assert kernel(model) == expected
    assert kernel(model) == "sdpa"


def test_a_kernel_that_someone_chose_is_kept_and_an_error_restores_it(tiny_model_dir):
    model = tiny_adapted(tiny_model_dir, compute_dtype="bfloat16")
    with pytest.raises(RuntimeError, match="stop"), attention_for(model.model, 16):
        raise RuntimeError("stop")
    assert kernel(model) == "sdpa"
    model.model.config._attn_implementation = "flex_attention"
    with attention_for(model.model, 16):
        assert kernel(model) == "flex_attention"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_both_kernels_agree_within_the_rounding_of_bfloat16(tiny_model_dir, checkpointing):
    rows = random_rows(0, SHAPES, prefix=(1, 2, 3))

    def measured(compute_dtype, tokens):
        model = tiny_adapted(
            tiny_model_dir, compute_dtype=compute_dtype, gradient_checkpointing=checkpointing
        )
        loss = ResponseLoss(model.model)
        (batch,) = lay_out(rows, microbatch_tokens=512, packing=True, share_prefix=True)
        with attention_for(model.model, tokens):
            value = loss(batch)
            value.backward()
        found = torch.cat([gradient.double().flatten() for gradient in gradients(model).values()])
        return float(value.detach()), found

    exact_loss, exact = measured("float32", 64)
    errors = []
    for tokens in (64, 10_000):  # products with a softmax between, then the fused kernel
        loss, found = measured("bfloat16", tokens)
        assert loss == pytest.approx(exact_loss, rel=0.01)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert max(errors) < 0.05
    assert errors[0] < 1.5 * errors[1]
