"""fedtune: federated LoRA fine-tuning of quantized language models.

``fedtune.simulate(["experiment=demo"])`` runs a federation and returns its `Run`; importing the package loads
nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
