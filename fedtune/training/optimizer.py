"""AdamW, with states of 32 or of 8 bits, and plain SGD."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from fedtune.config.schema import TrainingConfig

__all__ = ["Moments", "load_moments", "make_optimizer", "read_moments"]

Moments = dict[str, torch.Tensor]
"""An optimizer's states on the CPU: ``TENSOR/STATE`` to values, such as ``…lora_A.weight/exp_avg``."""


def make_optimizer(parameters: Sequence[torch.nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Make an optimizer with empty states.

    AdamW is that of Loshchilov and Hutter, "Decoupled Weight Decay", 2019, Algorithm 2. Plain SGD has no
    momentum, and so its weight decay is a decoupled one as well: w - rate * (gradient + weight_decay * w).

    The learning rate is left at the peak: the caller sets each step's own. Betas are (0.9, 0.999), epsilon
    is 1e-8.

    Args:
        parameters: The tensors to train, of one type, on one device.
        config: ``optimizer``: ``adamw`` (8 bytes of state a value, 16 in float64), or ``adamw8bit`` (about 2
            bytes a value, quantized block-wise: Dettmers et al., "8-bit Optimizers", 2022, section 2.1;
            bitsandbytes keeps 32-bit states for tensors below 4,096 values), or ``sgd`` (no states).
            ``weight_decay``.
    """
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
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


def read_moments(optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]) -> Moments:
    """Copy an optimizer's states; whole numbers become tensors without dimensions."""
    return {
        f"{name}/{key}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def load_moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter], moments: Moments
) -> None:
    """Put states that `read_moments` gave into a new optimizer; parameters without any stay fresh.

    Guarantee: steps go on bit for bit as if the optimizer had never ended.
    """
    for name, parameter in parameters.items():
        prefix = f"{name}/"
        states = {key.removeprefix(prefix): value for key, value in moments.items() if key.startswith(prefix)}
        if states:
            optimizer.state[parameter] = {key: _restored(value, parameter) for key, value in states.items()}


def _restored(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor | int:
    if value.ndim == 0:
        # bitsandbytes counts steps in an int, torch in a float tensor that stays on the CPU.
        return value.clone() if value.is_floating_point() else int(value)
    return value.to(parameter.device, copy=True)
