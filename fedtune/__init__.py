"""fedtune: federated LoRA fine-tuning of quantized language models.

``fedtune.simulate(["experiment=demo"])`` runs a federation and returns its `Run`; importing the package loads
nothing heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Read by the libraries under torch when they are loaded, so set before. Whoever sets them keeps his value.
#
# Threads that wait for each other spin by default; where another process wants the cores, each of a step's
# thousands of waits then costs a time slice: training beside one busy process took 5 to 20 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# numpy's OpenBLAS spins too; the aggregation-error meter took 0.4 s a round alone and 6 s beside others.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# oneDNN and torch's layer above it keep code for the last 1,024 shapes each. Packed rows have a new length in
# every step, and each cost 9 MiB that no later step used; one step needs some twenty.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
os.environ.setdefault("LRU_CACHE_CAPACITY", "64")

if TYPE_CHECKING:
    from fedtune.simulation.simulate import Run, simulate

__all__ = ["Run", "__version__", "simulate"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Late: simulate imports torch, transformers and flwr, which take seconds.
    if name in ("Run", "simulate"):
        from fedtune.simulation import simulate as module  # noqa: PLC0415

        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
