"""A second, frozen adapter beside the one that is trained, of any rank.

What does not fit into the trained factors and must not be added to quantized weights (rounding them again
loses more than it adds) is computed beside them: a layer adds ``scaling * L (R x)`` to its output, L (out,
rank), R (rank, in).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.hooks import RemovableHandle

from fedtune.models.adapter import AdapterSpec

__all__ = ["SideCar"]


class SideCar:
    """Puts a frozen adapter on a peft model, and takes it off again.

    Args:
        model: The model; its layers keep their names.
        spec: The trained adapter's: names, scaling and type.
    """

    def __init__(self, model: PeftModel, spec: AdapterSpec) -> None:
        self._model, self._spec = model, spec
        self._handles: list[RemovableHandle] = []

    def put(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Replace what is there.

        Args:
            tensors: One array for each name of the spec, of its shapes but for the rank; empty for nothing.
        """
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if not tensors:
            return
        for name_A, name_B in self._spec.pairs:
            module = self._model.get_submodule(name_A.removesuffix(".lora_A.weight"))
            device = next(module.parameters()).device
            down, up = (torch.tensor(np.asarray(tensors[name]), device=device) for name in (name_A, name_B))
            self._handles.append(module.register_forward_hook(_adding(down, up * self._spec.scaling)))


def _adding(down: Tensor, up: Tensor) -> Any:
    def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        more = linear(linear(inputs[0].to(down.dtype), down), up)
        return output + more.to(output.dtype)

    return add
