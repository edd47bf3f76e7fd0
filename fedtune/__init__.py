"""fedtune: federated LoRA fine-tuning of quantized language models.

``fedtune.simulate(["experiment=demo"])`` runs a federation and returns its `Run`; importing the package loads
nothing heavy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# Read by OpenMP when torch is loaded, so it is set before. By default threads that wait for each other spin;
# where another process wants the cores, each of a step's thousands of waits then costs a time slice: training
# beside one busy process took 5 to 20 times as long. Sleeping costs nothing measurable on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

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
