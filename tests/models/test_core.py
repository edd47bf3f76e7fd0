"""A trained matrix between two frozen ones, against the LoRA adapter that it stands for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support.adapters import random_adapter
from support.model_settings import model_config, peft_config

from fedtune.models.adapted import adapter_spec, load_adapted_model
from fedtune.models.adapter import initial_adapter
from fedtune.models.core import frozen_up, without_core

CORE = peft_config(method="core", rank=3)


def test_only_the_small_matrix_has_a_gradient_and_it_is_that_of_the_product(tiny_model_dir: Path) -> None:
    settings = model_config(tiny_model_dir, quantization="none")
    core = load_adapted_model(settings, CORE, gradient_checkpointing=False)
    lora = load_adapted_model(settings, peft_config(rank=3), gradient_checkpointing=False)
    assert core.spec == adapter_spec(settings, CORE)
    adapter = random_adapter(core.spec, 1, scale=0.2)
    core.load_adapter(adapter)
    lora.load_adapter(without_core(adapter, lora.spec))
    ids = torch.arange(3, 30)[None]
    for model in (core, lora):
        model.set_trainable(("B",))
        model.model(input_ids=ids).logits.square().sum().backward()
    torch.testing.assert_close(core.model(input_ids=ids).logits, lora.model(input_ids=ids).logits)
    trained = {name for name, value in core.model.named_parameters() if value.requires_grad}
    assert len(trained) == len(core.spec.pairs)
    for _, name in core.spec.pairs:
        assert core.spec.shapes[name] == (3, 3)
        up = frozen_up(name, lora.spec.shapes[name][0], 3)
        gradient = lora.parameters()[name].grad
        assert gradient is not None
        chained = up.T @ gradient.numpy()
        np.testing.assert_allclose(core.parameters()[name].grad, chained, atol=1e-3 * np.abs(chained).max())  # type: ignore[arg-type]


def test_it_starts_as_the_base_and_the_frozen_matrix_is_settled_by_the_name() -> None:
    up = frozen_up("layer.0.lora_B.weight", 2000, 4)
    np.testing.assert_array_equal(up, frozen_up("layer.0.lora_B.weight", 2000, 4))
    assert not np.array_equal(up, frozen_up("layer.1.lora_B.weight", 2000, 4))
    np.testing.assert_allclose(np.linalg.norm(up, axis=0), 1.0, atol=0.05)


def test_the_start_of_a_run_is_a_zero_core(tiny_model_dir: Path) -> None:
    spec = adapter_spec(model_config(tiny_model_dir), CORE)
    start = initial_adapter(spec, 0)
    assert all(not np.any(start[name]) for name in spec.names(("B",)))
    assert all(np.any(start[name]) for name in spec.names(("A",)))
