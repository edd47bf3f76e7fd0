"""Ways that updates may travel, for tests."""

from __future__ import annotations

from typing import Any

from fedtune.config.schema import UpdatesConfig

__all__ = ["EXACT", "quantized"]

EXACT = UpdatesConfig(quantization="none", block_size=64, error_feedback=False, max_norm=None)


def quantized(kind: Any = "int8", *, block_size: Any = 16, error_feedback: bool = False) -> UpdatesConfig:
    return UpdatesConfig(
        quantization=kind, block_size=block_size, error_feedback=error_feedback, max_norm=None
    )
