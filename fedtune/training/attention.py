"""The faster of two kernels for the attention of a short sequence on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["attention_for"]

_SHORT = 256
"""Tokens up to which the attention weights of all layers may be kept for the backward pass: for SmolLM2's 30
layers of 9 heads they are 100 MiB, and grow with the square."""


@contextmanager
def attention_for(model: torch.nn.Module, tokens: int) -> Iterator[None]:
    """Choose the attention kernel of a forward and backward pass over sequences of so many tokens.

    torch 2.13 has no fast matrix product for bfloat16 in the backward pass of its fused attention on CPUs:
    for 150 tokens, 9 heads of 64, it takes 2.7 times as long as two plain products with a softmax between,
    for 300 tokens 1.9 times. Both compute the same up to rounding. Everything else keeps its kernel.

    Args:
        model: A model of transformers, or one wrapped by peft.
        tokens: Length of the sequences.
    """
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    chosen = config._attn_implementation
    if chosen == "sdpa" and tokens <= _SHORT and _is_bfloat16_on_a_cpu(model):
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        config._attn_implementation = chosen


def _is_bfloat16_on_a_cpu(model: torch.nn.Module) -> bool:
    embeddings: torch.Tensor = model.get_input_embeddings().weight  # type: ignore[operator]
    return embeddings.device.type == "cpu" and embeddings.dtype is torch.bfloat16
