"""What a model holds and computes, for comparisons bit for bit."""

from __future__ import annotations

import hashlib

import torch


def digest(tensor: torch.Tensor) -> str:
    plain = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    shape = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(shape + plain.numpy().tobytes()).hexdigest()


def frozen_state(model: torch.nn.Module) -> dict[str, str]:
    """A hash of each tensor of the base: parameters, buffers, and the statistics of quantized weights."""
    return {
        name: digest(value)
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor) and value.numel() and "lora_" not in name
    }


def next_token_loss(model: torch.nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    """Mean nats per token; for a float64 model in float64, where that of transformers is in float32."""
    logits = model(input_ids=token_ids).logits[:, :-1].flatten(0, 1)
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(exact, token_ids[:, 1:].flatten())


def gradients(model: torch.nn.Module, token_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of the next-token loss on these tokens, for whatever requires one."""
    model.zero_grad(set_to_none=True)
    next_token_loss(model, token_ids).backward()
    found = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return found
