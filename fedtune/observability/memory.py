"""Peak memory of this process."""

from __future__ import annotations

from pathlib import Path

__all__ = ["peak_memory_mib"]


def peak_memory_mib() -> float:
    """Return the largest resident set this process ever had, in MiB.

    The kernel's own high-water mark (``VmHWM``, proc(5)), so nothing is missed between two samples. It never
    falls: measured twice, the second says the peak of both. ``getrusage`` will not do, since its figure is
    inherited from the process that started this one.
    """
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")
