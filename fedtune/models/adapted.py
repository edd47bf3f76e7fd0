"""A frozen, quantized base model with a trainable LoRA adapter on it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from fedtune.config.schema import ModelConfig, PeftConfig
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, Factor

__all__ = ["AdaptedModel", "BaseModelInfo", "load_adapted_model", "load_tokenizer", "shared_adapted_model"]


@dataclass(frozen=True, kw_only=True)
class BaseModelInfo:
    """What is known about a loaded base model.

    Attributes:
        name: The model's name in the configuration.
        hash: Hash of the weights and the architecture.
        parameters: Parameters of the base.
        adapter_parameters: Parameters of the adapter.
        quantization: ``nf4``, ``int8`` or ``none``.
        compute_dtype: Type of the base's arithmetic.
        device: Where the model lives.
        load_seconds: Time it took to load.
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
    """A base model whose adapter can be exchanged in place."""

    def __init__(self, model: PeftModel, tokenizer: Any, spec: AdapterSpec, info: BaseModelInfo) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.spec = spec
        self.info = info
        self._parameters = _adapter_parameters(model)

    def load_adapter(self, adapter: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Overwrite the adapter in place."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(torch.from_numpy(adapter[name]))

    def read_adapter(self, factors: Collection[Factor] = FACTORS) -> Adapter:
        """Copy the adapter's tensors of these factors."""
        return {
            name: self._parameters[name].detach().cpu().numpy().copy() for name in self.spec.names(factors)
        }

    def set_trainable(self, factors: Sequence[Factor]) -> None:
        """Let gradients flow into these factors only."""
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self.spec.factor(name) in factors)


def _adapter_parameters(model: PeftModel) -> dict[str, torch.nn.Parameter]:
    keys = get_peft_model_state_dict(model)
    return {
        name.replace(".default", ""): parameter
        for name, parameter in model.named_parameters()
        if name.replace(".default", "") in keys
    }


def load_tokenizer(model: ModelConfig) -> Any:
    """Load the base model's tokenizer."""
    return AutoTokenizer.from_pretrained(model.name)


def load_adapted_model(model: ModelConfig, peft: PeftConfig, *, gradient_checkpointing: bool) -> AdaptedModel:
    """Load the base, put an adapter on it, and freeze all but the adapter."""
    started = time.perf_counter()
    dtype = torch.float32 if model.compute_dtype == "auto" else getattr(torch, model.compute_dtype)
    quantization = {
        "nf4": lambda: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        ),
        "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
        "none": lambda: None,
    }[model.quantization]()
    base = AutoModelForCausalLM.from_pretrained(
        model.name, dtype=dtype, quantization_config=quantization, device_map={"": "cpu"}
    )
    parameters = base.num_parameters()
    targets = peft.target_modules if isinstance(peft.target_modules, str) else list(peft.target_modules)
    lora = LoraConfig(
        r=peft.rank,
        lora_alpha=peft.alpha,
        lora_dropout=peft.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by the property's old name.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        adapted = get_peft_model(base, lora)
    adapter_dtype = torch.float64 if dtype is torch.float64 else torch.float32
    factors = _adapter_parameters(adapted)
    for parameter in factors.values():
        parameter.data = parameter.data.to(adapter_dtype)
    adapted.config.use_cache = False
    if gradient_checkpointing:
        base.activation_checkpointing_enable({"use_reentrant": False})
    adapted.train()
    spec = AdapterSpec(
        shapes={name: tuple(parameter.shape) for name, parameter in factors.items()},
        scaling=peft.alpha / peft.rank,
        dtype=str(adapter_dtype).removeprefix("torch."),
    )
    info = BaseModelInfo(
        name=model.name,
        hash="",
        parameters=parameters,
        adapter_parameters=spec.parameters(),
        quantization=model.quantization,
        compute_dtype=str(dtype).removeprefix("torch."),
        device="cpu",
        load_seconds=time.perf_counter() - started,
    )
    return AdaptedModel(adapted, load_tokenizer(model), spec, info)


_shared: dict[tuple[ModelConfig, PeftConfig, bool], AdaptedModel] = {}


def shared_adapted_model(
    model: ModelConfig, peft: PeftConfig, *, gradient_checkpointing: bool
) -> AdaptedModel:
    """Return this process's model for these settings; another settings' model is dropped first."""
    key = (model, peft, gradient_checkpointing)
    if key not in _shared:
        _shared.clear()
        _shared[key] = load_adapted_model(model, peft, gradient_checkpointing=gradient_checkpointing)
    return _shared[key]
