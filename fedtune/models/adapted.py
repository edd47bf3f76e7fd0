"""A frozen, quantized base model with a trainable LoRA adapter on it, exchanged in place."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from peft import PeftModel

from fedtune.config.schema import ModelConfig, PeftConfig
from fedtune.errors import ModelError, Problem
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, Factor
from fedtune.models.architecture import architecture, check_quantization, count_parameters, skeleton
from fedtune.models.base import load_base, read_tokenizer
from fedtune.models.hardware import resolve_device, return_freed_memory
from fedtune.models.lora import (
    adapter_parameters,
    add_lora,
    check_targets,
    set_adapter_shapes,
    spec_of,
)
from fedtune.models.side_car import SideCar

__all__ = [
    "AdaptedModel",
    "BaseModelInfo",
    "adapter_spec",
    "load_adapted_model",
    "load_tokenizer",
    "shared_adapted_model",
]


@dataclass(frozen=True, kw_only=True)
class BaseModelInfo:
    """What is known about a loaded base model.

    Attributes:
        name: The model's name in the configuration.
        hash: SHA-256 of its unquantized weights and architecture, as `fedtune.models.base.base_hash`.
        parameters: Parameters of the base; tied ones count once.
        adapter_parameters: Parameters of the adapter.
        quantization: ``nf4``, ``int8`` or ``none``.
        compute_dtype: Type of the base's arithmetic, such as ``bfloat16``.
        device: ``cpu`` or ``cuda``.
        load_seconds: Time from the call to a model ready to train, conversion included.
    """

    name: str
    hash: str
    parameters: int
    adapter_parameters: int
    quantization: str
    compute_dtype: str
    device: str
    load_seconds: float


class AdaptedModel:
    """A base model whose adapter can be exchanged in place.

    Guarantees:
        * After ``load_adapter(a)``, ``read_adapter()`` equals ``a`` bit for bit.
        * Nothing but the adapter ever requires a gradient: the base is as it was loaded.
        * ``.model`` may be switched between ``eval()`` and ``train()`` at any time; only dropout and
          gradient checkpointing follow.

    Attributes:
        model: The peft model, with its caching of keys and values off.
        tokenizer: The base model's tokenizer.
        spec: The adapter's names, shapes and type, of the rank that it has now.
        info: What is known about the base.
    """

    def __init__(self, *, model: PeftModel, tokenizer: Any, spec: AdapterSpec, info: BaseModelInfo) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.info = info
        self._parameters = adapter_parameters(model)
        self._side_car = SideCar(model, spec)

    @property
    def device(self) -> torch.device:
        """Where inputs have to be."""
        return torch.device(self.info.device)

    def parameters(self, factors: Collection[Factor] = FACTORS) -> dict[str, torch.nn.Parameter]:
        """Return the adapter's parameters of these factors by name; they are the model's, not copies."""
        return {name: self._parameters[name] for name in self.spec.names(factors)}

    def load_adapter(self, adapter: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Overwrite the adapter's tensors in place; gradients are dropped.

        Args:
            adapter: One array for each name of ``spec``, of its shape and dtype.

        Raises:
            ModelError: One FT308 for each name, shape or dtype that does not fit; nothing is overwritten.
        """
        problems = self._misfits(adapter)
        if problems:
            raise ModelError(problems)
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.grad = None
                # A read-only array (from a message or a memory map) is only read here.
                parameter.copy_(torch.from_numpy(np.require(adapter[name], requirements=["C", "W"])))

    def read_adapter(self, factors: Collection[Factor] = FACTORS) -> Adapter:
        """Copy the adapter's tensors of these factors, in the spec's order."""
        return {
            name: parameter.detach().to("cpu", copy=True).numpy()
            for name, parameter in self.parameters(factors).items()
        }

    def set_rank(self, rank: int) -> None:
        """Replace the adapter's tensors by unset ones of another rank; load an adapter before using them.

        Gradients and an optimizer's states then take memory for this rank. The scaling stays.
        """
        if rank == self.spec.shapes[self.spec.pairs[0][0]][0]:
            return
        self.spec = self.spec.with_rank(rank)
        set_adapter_shapes(self.model, self.spec)
        self._parameters = adapter_parameters(self.model)

    def set_side_car(self, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Put a frozen adapter beside the trained one, as `SideCar.put`; an empty one takes it off."""
        self._side_car.put(tensors)

    def set_trainable(self, factors: Sequence[Factor]) -> None:
        """Let gradients flow into the tensors of these factors and into nothing else."""
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self.spec.factor(name) in factors)
            parameter.grad = None

    def _misfits(self, adapter: Mapping[str, np.ndarray[Any, Any]]) -> list[Problem]:
        spec = self.spec
        found = [
            (name, "is no tensor of this adapter") for name in sorted(adapter) if name not in spec.shapes
        ]
        for name, shape in spec.shapes.items():
            if name not in adapter:
                found.append((name, "is missing"))
            elif adapter[name].shape != shape:
                found.append((name, f"has the shape {adapter[name].shape}, not {shape}"))
            elif adapter[name].dtype != spec.dtype:
                found.append((name, f"is {adapter[name].dtype}, not {spec.dtype}"))
        fix = "take an adapter made with this model.name, peft.rank and peft.target_modules"
        return [
            Problem(
                code="FT308", what=f"this adapter does not fit the model: {name} {what}", where=name, fix=fix
            )
            for name, what in found
        ]


def load_adapted_model(model: ModelConfig, peft: PeftConfig, *, gradient_checkpointing: bool) -> AdaptedModel:
    """Load the base, put an adapter on it, and freeze all but the adapter.

    What does not fit is refused before any weights are read.

    Args:
        model: The base.
        peft: The adapter.
        gradient_checkpointing: Recompute each layer in the backward pass (Chen et al., "Training Deep Nets
            with Sublinear Memory Cost", 2016) instead of keeping its activations.

    Returns:
        The model in training mode, both factors trainable, ``B`` zero. Load `initial_adapter` for the
        seeded start of a run.

    Raises:
        ModelError: FT301 to FT304 and FT307, the model's files; FT305 and FT306, the target list; FT309, the
            arithmetic; FT310, the tokenizer; FT311, the quantization.
        MachineError: FT801, no GPU; FT802, the cache cannot be written.
    """
    started = time.perf_counter()
    bare = skeleton(architecture(model))
    check_targets(bare, peft)
    check_quantization(bare, model, resolve_device(model.device))
    tokenizer = load_tokenizer(model)
    base = load_base(model)
    if gradient_checkpointing:
        if base.device == "cpu":
            return_freed_memory()
        base.model.activation_checkpointing_enable({"use_reentrant": False})
        # Only reentrant checkpointing needs the embeddings' output to require a gradient.
        base.model.disable_input_require_grads()  # type: ignore[no-untyped-call]
    adapted = add_lora(base.model, peft, _adapter_dtype(model))
    adapted.train()
    spec = spec_of(adapted, peft)
    info = BaseModelInfo(
        name=model.name,
        hash=base.hash,
        parameters=count_parameters(bare),
        adapter_parameters=spec.parameters(),
        quantization=model.quantization,
        compute_dtype=str(base.compute_dtype).removeprefix("torch."),
        device=base.device,
        load_seconds=time.perf_counter() - started,
    )
    return AdaptedModel(model=adapted, tokenizer=tokenizer, spec=spec, info=info)


def adapter_spec(model: ModelConfig, peft: PeftConfig) -> AdapterSpec:
    """Describe the adapter of a model that is not loaded: from its config.json, on the meta device.

    Returns:
        The ``spec`` that `load_adapted_model` would give.

    Raises:
        ModelError: FT301 to FT307, as `load_adapted_model`.
    """
    found, dtype = architecture(model), _adapter_dtype(model)
    # By content: the files may have changed since the last time.
    key = (found.to_json_string(use_diff=False), peft, dtype)
    if key not in _specs:
        _specs.clear()
        _specs[key] = spec_of(add_lora(skeleton(found), peft, dtype), peft)
    return _specs[key]


_specs: dict[tuple[str, PeftConfig, torch.dtype], AdapterSpec] = {}
"""The last description: making the layers takes a second or two, and a run asks for it five times."""


def _adapter_dtype(model: ModelConfig) -> torch.dtype:
    # Never 16 bits: an optimizer's step is too small for their 8 or 11 digits.
    return torch.float64 if model.compute_dtype == "float64" else torch.float32


@lru_cache(maxsize=1)
def load_tokenizer(model: ModelConfig) -> Any:
    """Load the base model's tokenizer; asked again for the same model, return the same object.

    Raises:
        ModelError: FT301 to FT304, the model's files; FT310, it has no usable tokenizer.
    """
    return read_tokenizer(model)


_shared: dict[tuple[ModelConfig, PeftConfig, bool], AdaptedModel] = {}
_shared_lock = threading.Lock()


def shared_adapted_model(
    model: ModelConfig, peft: PeftConfig, *, gradient_checkpointing: bool
) -> AdaptedModel:
    """Return this process's one model for these settings, as `load_adapted_model`.

    Whoever asks for it loads the adapter it wants to train or evaluate. A model of other settings is
    dropped before the new one is loaded, so that there is never memory for two.
    """
    key = (model, peft, gradient_checkpointing)
    with _shared_lock:
        if key not in _shared:
            _shared.clear()
            _shared[key] = load_adapted_model(model, peft, gradient_checkpointing=gradient_checkpointing)
        return _shared[key]
