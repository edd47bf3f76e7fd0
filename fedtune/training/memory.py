"""The most memory this process has held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

__all__ = ["peak_memory_mib"]


def peak_memory_mib() -> float:
    """Return the peak resident memory of this process in MiB, plus what torch has held on the GPU.

    Linux keeps it as ``VmHWM``. ``ru_maxrss`` of a process that was started by another one may be that of
    its parent, so it is asked only where there is no ``/proc``.
    """
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0
    return _peak_resident_mib() + gpu


def _peak_resident_mib() -> float:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024  # bytes on macOS, KiB elsewhere
