"""Attention in a forward pass that several clients share: no client's tokens see another's.

The microbatches of all clients stand end to end in one sequence. Their attention is computed for each alone,
by the kernel and with the mask that it would have alone: the cost is the sum of the clients' and not the
square of it, and what is computed is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fedtune.training.attention import attention_for

__all__ = ["Seen", "attending", "seen_by"]

_NAME = "fedtune_cohort"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One client's part of the sequence.

    Attributes:
        rows: Rows of its microbatch that do not see each other (B); 1 when packed.
        tokens: Tokens of each (T).
        kernel: Name of the attention that it would have alone.
        mask: (B, 1, T, T), as that kernel takes it; None for all that is earlier.
    """

    rows: int
    tokens: int
    kernel: str
    mask: Tensor | None


def seen_by(model: torch.nn.Module, inputs: dict[str, Any], *, trained: bool) -> Seen:
    """Return how a client's microbatch would be attended alone.

    Args:
        model: A model of transformers, or one wrapped by peft.
        inputs: Of the model, for that microbatch.
        trained: Whether a backward pass follows.
    """
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    rows, tokens = inputs["input_ids"].shape
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    with attention_for(model, tokens if trained else sys.maxsize):
        mask: Any = create_causal_mask(
            config=config,
            inputs_embeds=weight.new_empty(rows, tokens, 1),
            attention_mask=inputs.get("attention_mask"),
            past_key_values=None,
            position_ids=inputs["position_ids"],
        )
        return Seen(rows=rows, tokens=tokens, kernel=config._attn_implementation, mask=mask)


@contextmanager
def attending(model: torch.nn.Module, parts: Sequence[Seen]) -> Iterator[None]:
    """Attend within each part in forward and backward passes inside the block.

    Args:
        model: A model of transformers, or one wrapped by peft.
        parts: In the order of their tokens.
    """
    global _parts
    config: Any = model.config.get_text_config()  # type: ignore[operator, union-attr]
    chosen = config._attn_implementation
    config._attn_implementation, _parts = _NAME, _joined(parts)
    try:
        yield
    finally:
        config._attn_implementation, _parts = chosen, ()


_parts: Sequence[Seen] = ()
"""Of the pass that is being computed; one model is trained at a time in a process. Not of a thread's context:
on a GPU, autograd computes a checkpointed layer again in a thread of its own."""


def _joined(parts: Sequence[Seen]) -> list[Seen]:
    """Let neighbours of one shape be rows of one part."""
    joined: list[Seen] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is None or (last.tokens, last.kernel) != (part.tokens, part.kernel):
            joined.append(part)
        elif last.mask is None and part.mask is None:
            joined[-1] = replace(last, rows=last.rows + part.rows)
        elif last.mask is not None and part.mask is not None:
            mask = torch.cat([last.mask, part.mask])
            joined[-1] = replace(last, rows=last.rows + part.rows, mask=mask)
        else:
            joined.append(part)
    return joined


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each part. ``query``, ``key``, ``value``: (1, heads, N, head size)."""
    found, begin = [], 0
    for part in _parts:
        end = begin + part.rows * part.tokens
        q, k, v = (_rows(each, begin, end, part) for each in (query, key, value))
        output, _ = _kernel(module, part.kernel)(module, q, k, v, part.mask, **options)
        found.append(output.flatten(0, 1))
        begin = end
    return torch.cat(found)[None], None


def _rows(values: Tensor, begin: int, end: int, part: Seen) -> Tensor:
    """Return (B, heads, T, head size) of (1, heads, N, head size)."""
    own = values[0, :, begin:end]
    return own.reshape(len(own), part.rows, part.tokens, -1).transpose(0, 1)


def _kernel(module: torch.nn.Module, name: str) -> Any:
    if name in ALL_ATTENTION_FUNCTIONS:
        return ALL_ATTENTION_FUNCTIONS[name]
    # Each model brings its own plain attention, which is in no register.
    return sys.modules[type(module).__module__].eager_attention_forward


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
