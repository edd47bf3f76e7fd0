"""Training and evaluation mode of a model, left as they were found.

The model's quantized layers compute the same in both modes (see `fedtune.models.base`): what changes is
dropout and gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.modules.dropout import _DropoutNd

__all__ = ["evaluation_mode", "has_dropout", "training_mode"]


@contextmanager
def training_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradient checkpointing on inside the block."""
    with _modes_restored(model):
        model.train()
        yield


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off inside the block."""
    with _modes_restored(model), torch.no_grad():
        model.eval()
        yield


def has_dropout(model: torch.nn.Module) -> bool:
    """Return whether the model computes something else in training than in evaluation."""
    layers = any(isinstance(module, _DropoutNd) and module.p > 0 for module in model.modules())
    config = getattr(model, "config", None)
    return layers or bool(getattr(config, "attention_dropout", 0.0))


@contextmanager
def _modes_restored(model: torch.nn.Module) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
