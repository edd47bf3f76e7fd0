"""AdamW, with states of 32 or of 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedtune.config.schema import TrainingConfig

__all__ = ["make_optimizer"]


def make_optimizer(parameters: Sequence[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Make an AdamW with empty states (Loshchilov and Hutter, "Decoupled Weight Decay", 2019, Algorithm 2).

    The learning rate is left at the peak: the caller sets each step's own. Betas are (0.9, 0.999), epsilon
    is 1e-8.

    Args:
        parameters: The tensors to train, of one type, on one device.
        config: ``optimizer``: ``adamw`` (8 bytes of state a value, 16 in float64), or ``adamw8bit`` (about 2
            bytes a value, quantized block-wise: Dettmers et al., "8-bit Optimizers", 2022, section 2.1;
            bitsandbytes keeps 32-bit states for tensors below 4,096 values). ``weight_decay``.
    """
    if config.optimizer == "adamw8bit":
        # A heavy import that plain AdamW has no use for.
        from bitsandbytes.optim.adamw import AdamW8bit  # noqa: PLC0415

        quantized: torch.optim.Optimizer = AdamW8bit(  # type: ignore[no-untyped-call]
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        return quantized
    # Fused: one pass over each tensor instead of a dozen.
    return torch.optim.AdamW(
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
