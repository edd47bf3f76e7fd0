"""The adapter as peft's own files: ``PeftModel.from_pretrained(base, directory)`` loads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig
from safetensors.numpy import save

from fedtune.aggregation.carrying import with_side_car
from fedtune.config.schema import Config, PeftConfig
from fedtune.errors import ModelError, Problem
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.models.core import without_core
from fedtune.observability.disk import write_folder_atomic

__all__ = ["WEIGHTS_FILE", "save_adapter", "save_global"]

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


def save_adapter(
    adapter: Mapping[str, np.ndarray[Any, Any]],
    spec: AdapterSpec,
    peft: PeftConfig,
    model_name: str,
    directory: Path,
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    Guarantees:
        * The folder is there whole or not at all; an older one of this name is replaced.
        * The same adapter and settings give the same bytes.

    Args:
        adapter: One array for each name of the spec.
        spec: Names, shapes and scaling.
        peft: The settings it was trained with; its target modules are written as peft resolved them, so that
            the file does not depend on what ``all-linear`` means to a later peft.
        model_name: ``model.name``, written as ``base_model_name_or_path``: where it is neither a Hugging
            Face id nor a path (``package:…``, ``….gguf``) it says what the base was, and the reader loads it.
        directory: The folder to write, such as ``runs/demo/adapter``.

    Raises:
        ModelError: FT390, the adapter or the settings are not those of the spec.
        RunError: FT705 or FT707, the folder cannot be written.
    """
    problems = _problems(adapter, spec, peft)
    if problems:
        raise ModelError(problems)
    config = LoraConfig(
        r=peft.rank,
        # peft declares an integer, and some readers insist on it; it computes with fractions all the same.
        lora_alpha=int(peft.alpha) if peft.alpha.is_integer() else peft.alpha,  # type: ignore[arg-type]
        lora_dropout=peft.dropout,
        target_modules=list(target_modules(spec, peft)),
        task_type="CAUSAL_LM",
        base_model_name_or_path=model_name,
        inference_mode=True,
    )
    # A set comes out in another order in every process: sorted, equal adapters are equal files.
    fields = config.to_dict()  # type: ignore[no-untyped-call]
    values = {key: sorted(value) if isinstance(value, set) else value for key, value in fields.items()}
    tensors = {name: np.ascontiguousarray(adapter[name]) for name in spec.shapes}
    write_folder_atomic(
        directory,
        {
            CONFIG_FILE: json.dumps(values, indent=2, sort_keys=True).encode() + b"\n",
            WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        },
    )


def save_global(
    adapter: Adapter, side_car: Adapter, spec: AdapterSpec, config: Config, directory: Path
) -> None:
    """Write the adapter and the side-car beside it as one adapter of PEFT, as `save_adapter`.

    An adapter of ``peft.method=core`` becomes the LoRA adapter that computes the same. Both have the same
    scaling s = alpha / rank: stacked, they are an adapter of the sum of their ranks r, and its alpha is s
    r.

    Args:
        adapter: One array for each name of the spec.
        side_car: Likewise, of any rank; empty for nothing.
        spec: Of the adapter.
        config: The run's.
        directory: The folder to write.
    """
    peft = config.peft
    if peft.method == "core":
        peft = replace(peft, method="lora")
        spec = adapter_spec(config.model, peft)
        adapter = without_core(adapter, spec)
    if side_car:
        name_A = spec.pairs[0][0]
        rank = adapter[name_A].shape[0] + side_car[name_A].shape[0]
        peft = replace(peft, rank=rank, alpha=spec.scaling * rank)
        spec = replace(spec.with_rank(rank), scaling=peft.alpha / rank)
    save_adapter(with_side_car(adapter, side_car), spec, peft, config.model.name, directory)


def target_modules(spec: AdapterSpec, peft: PeftConfig) -> tuple[str, ...]:
    """Return the names of the modules that have an adapter: the configured ones, or the last parts of all."""
    if not isinstance(peft.target_modules, str):
        return tuple(sorted(peft.target_modules))
    return tuple(sorted({name_A.split(".")[-3] for name_A, _ in spec.pairs}))


def _problems(
    adapter: Mapping[str, np.ndarray[Any, Any]], spec: AdapterSpec, peft: PeftConfig
) -> list[Problem]:
    found = {name: tensor.shape for name, tensor in adapter.items()}
    problems = [
        _problem(f"tensor {name} has shape {found.get(name)}, the adapter's is {spec.shapes.get(name)}")
        for name in sorted(found.keys() | spec.shapes.keys())
        if found.get(name) != spec.shapes.get(name)
    ]
    if peft.alpha / peft.rank != spec.scaling:
        problems.append(
            _problem(f"peft.alpha / peft.rank is {peft.alpha / peft.rank}, the adapter's is {spec.scaling}")
        )
    return problems


def _problem(what: str) -> Problem:
    return Problem(
        code="FT390",
        what=f"the adapter does not fit the settings that it would be saved with: {what}",
        where="the adapter to save",
        fix="save it with the model and peft settings that it was trained with",
    )
