"""Layers of other libraries, changed where they would compute something else than what is trained."""

from __future__ import annotations

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import nn
from transformers import PreTrainedModel

__all__ = ["keep_steady", "norms_in_float64"]


class _AlwaysTraining:
    """Holds a module in training mode, whoever tries to change it and however."""

    @property
    def training(self) -> bool:
        return True

    @training.setter
    def training(self, mode: bool) -> None:
        pass


class _SteadyLinear4bit(_AlwaysTraining, Linear4bit):
    """Computes the same in training and in evaluation.

    In evaluation mode on a CPU with AVX512-BF16, bitsandbytes 0.50 repacks the weights, rounds their scales
    to bfloat16, and leaves them so: no gradient would pass the layer any more. In training mode it
    dequantizes always, so a held-out loss is that of the weights that are trained on.
    """


class _SteadyLinear8bitLt(_AlwaysTraining, Linear8bitLt):
    """Computes the same in training and in evaluation.

    In evaluation mode bitsandbytes quantizes the activations too, which on a CPU is slow and prints a
    warning for each layer, and would evaluate another function than the one that is trained.
    """


def keep_steady(model: PreTrainedModel) -> None:
    """Make the quantized layers of a model compute in evaluation what they compute in training."""
    for module in model.modules():
        # The subclasses add no state, so an instance may change to them.
        if type(module) is Linear4bit:
            module.__class__ = _SteadyLinear4bit
        elif type(module) is Linear8bitLt:
            module.__class__ = _SteadyLinear8bitLt


class _Float64RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang and Sennrich, 2019, equation 4) without the usual detour by float32."""

    weight: torch.Tensor
    variance_epsilon: float

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


def norms_in_float64(model: PreTrainedModel) -> None:
    """Keep float64 to the end: transformers' norms round to float32, whatever the model's type.

    Float64 is for comparing two ways to compute the same; a rounding to float32 between would drown the
    comparison. A norm that computes something else (Gemma's has 1 + weight) stays as it is.
    """
    for module in model.modules():
        if not (type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")):
            continue
        weight = module.get_parameter("weight")
        probe = torch.linspace(-1, 2, weight.numel(), dtype=torch.float64, device=weight.device)
        expected = module(probe)
        theirs = type(module)
        module.__class__ = type(f"Float64{theirs.__name__}", (_Float64RMSNorm, theirs), {})
        if not torch.allclose(module(probe), expected, rtol=1e-5, atol=1e-6):
            module.__class__ = theirs
