"""Small models, rows and configurations to train with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fedtune.config.schema import ModelConfig, PeftConfig, TrainingConfig
from fedtune.data.tokenize import TokenizedExample
from fedtune.models.adapted import AdaptedModel, load_adapted_model
from fedtune.models.adapter import initial_adapter


def training_config(**overrides: object) -> TrainingConfig:
    """Plain AdamW at a constant rate, packed; keyword arguments replace fields."""
    fields: dict[str, object] = {
        "steps_per_round": 4,
        "examples_per_step": 4,
        "microbatch_tokens": 2048,
        "packing": True,
        "optimizer": "adamw",
        "keep_optimizer_state": False,
        "learning_rate": 1e-2,
        "weight_decay": 0.0,
        "warmup_fraction": 0.0,
        "decay": "constant",
        "final_learning_rate_fraction": 0.0,
        "max_gradient_norm": None,
        "gradient_checkpointing": False,
        "proximal_mu": 0.0,
        "control_variates": False,
        "threads": None,
    }
    return TrainingConfig(**(fields | overrides))


def tiny_adapted(
    folder: Path,
    *,
    compute_dtype: str = "float64",
    quantization: str = "none",
    dropout: float = 0.0,
    gradient_checkpointing: bool = False,
    seed: int = 0,
) -> AdaptedModel:
    """The model in a folder with a rank-4 adapter whose B is not zero: every gradient is alive."""
    model = load_adapted_model(
        ModelConfig(
            name=str(folder),
            quantization=quantization,
            compute_dtype=compute_dtype,
            device="cpu",
            cache_dir=None,
        ),
        PeftConfig(method="lora", rank=4, alpha=8.0, dropout=dropout, target_modules="all-linear"),
        gradient_checkpointing=gradient_checkpointing,
    )
    model.load_adapter(start_of(model, seed))
    return model


def start_of(model: AdaptedModel, seed: int = 0) -> dict[str, np.ndarray]:
    """The seeded adapter with small random numbers in B."""
    adapter = initial_adapter(model.spec, seed)
    stream = np.random.default_rng(seed)
    for name in model.spec.names(("B",)):
        adapter[name] = stream.normal(0, 0.05, adapter[name].shape).astype(model.spec.dtype)
    return adapter


def random_row(
    stream: np.random.Generator,
    prompt: int,
    response: int,
    *,
    prefix: tuple[int, ...] = (),
    name: str = "row",
) -> TokenizedExample:
    """A row of random tokens: the prefix, ``prompt`` others, then ``response`` targets."""
    drawn = stream.integers(0, 256, size=prompt + response)
    token_ids = np.concatenate([np.array(prefix, dtype=np.int64), drawn]).astype(np.int32)
    loss_mask = np.zeros(len(token_ids), dtype=bool)
    loss_mask[max(1, len(prefix) + prompt) :] = True
    return TokenizedExample(id=name, token_ids=token_ids, loss_mask=loss_mask)


def random_rows(
    seed: int, shapes: list[tuple[int, int]], prefix: tuple[int, ...] = ()
) -> list[TokenizedExample]:
    """One row for each (prompt, response) length."""
    stream = np.random.default_rng(seed)
    return [
        random_row(stream, prompt, response, prefix=prefix, name=f"row-{index}")
        for index, (prompt, response) in enumerate(shapes)
    ]


def gradients(model: AdaptedModel) -> dict[str, torch.Tensor]:
    """Copies of the adapter's gradients, which are then cleared."""
    found = {}
    for name, parameter in model.parameters().items():
        found[name] = parameter.grad.clone()
        parameter.grad = None
    return found
