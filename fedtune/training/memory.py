"""The most memory that training has held, on the host and on the GPU."""

from __future__ import annotations

import torch

from fedtune.observability import memory

__all__ = ["peak_memory_mib"]


def peak_memory_mib() -> float:
    """Return the peak resident memory of this process in MiB, plus what torch has held on the GPU."""
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return memory.peak_memory_mib() + gpu
