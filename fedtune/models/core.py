"""The adapter of ``peft.method=core``: a small trained matrix between two frozen ones.

A layer adds ``(alpha / rank) * U R A x``: A (rank, in) and U (out, rank) are drawn once and never change, R
(rank, rank) is trained and starts at zero (LoRA-XS, Bałazy et al., 2024, arXiv:2405.17604; LoRA-SB and
Fed-SB, Singhal et al., 2025, arXiv:2502.15436, where R travels alone). Those papers take the frozen
matrices from a singular value decomposition, of the weights or of a first gradient; here they are random,
for a base in 4 bits has no weights to decompose exactly, and a gradient would be a round trip that shows
something of one site's data. So expect less of a rank than they report.

R has the name and the place of LoRA's B, with the shape (rank, rank): whatever handles adapters handles it.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fedtune.data.seeds import derive_seed
from fedtune.models.adapter import Adapter, AdapterSpec

__all__ = ["CoreUp", "frozen_up", "without_core"]


def frozen_up(name: str, out_features: int, rank: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return U (out_features, rank) of a layer: the same on every machine and in every run.

    Entries are uniform with variance 1 / out_features, so that columns have a length of about 1.

    Args:
        name: Of the layer's B tensor; it alone decides the draw.
        out_features: Outputs of the layer.
        rank: Of the adapter.
    """
    bound = sqrt(3 / out_features)
    stream = np.random.Generator(np.random.PCG64(derive_seed("core", name)))
    return stream.uniform(-bound, bound, size=(out_features, rank))


class CoreUp(nn.Module):
    """Takes the place of LoRA's B in a layer: ``weight`` is R (rank, rank), U is no parameter."""

    up: Tensor

    def __init__(self, name: str, old: nn.Parameter, dtype: torch.dtype) -> None:
        super().__init__()
        out_features, rank = old.shape
        self.weight = nn.Parameter(torch.zeros(rank, rank, dtype=dtype, device=old.device))
        drawn = torch.empty(0, device="meta")
        if old.device.type != "meta":
            drawn = torch.from_numpy(frozen_up(name, out_features, rank)).to(old.device, dtype)
        self.register_buffer("up", drawn, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return U R x."""
        return linear(linear(x, self.weight), self.up)


def without_core(adapter: Adapter, spec: AdapterSpec) -> Adapter:
    """Return the LoRA adapter that computes the same, B = U R.

    Args:
        adapter: With R in the place of B.
        spec: Of the LoRA adapter, with B (out, rank).
    """
    plain = dict(adapter)
    for _, name_B in spec.pairs:
        out_features, rank = spec.shapes[name_B]
        plain[name_B] = (frozen_up(name_B, out_features, rank) @ adapter[name_B]).astype(spec.dtype)
    return plain
