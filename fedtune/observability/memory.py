"""Peak memory of this process."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

__all__ = ["peak_memory_mib"]


def peak_memory_mib() -> float:
    """Return the largest resident set this process ever had, in MiB.

    The kernel's own high-water mark (``VmHWM``, proc(5)), so nothing is missed between two samples. It never
    falls: measured twice, the second says the peak of both. The figure of ``getrusage`` may be inherited from
    the process that started this one, so it is asked only where there is no ``/proc``.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024  # bytes on macOS, KiB elsewhere
