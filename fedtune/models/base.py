"""Loading the frozen base model: found, converted if it has to be, quantized, and checked.

A GGUF file is converted once, and kept quantized as well: its next load reads 4-bit weights as they are.
A model in safetensors is quantized at each load, so that the disk never holds a second copy of it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from fedtune.config.schema import ModelConfig
from fedtune.errors import FedtuneError, ModelError, Problem
from fedtune.models.architecture import architecture
from fedtune.models.base_hash import base_hash
from fedtune.models.cache import cache_folder, cache_key, make_once
from fedtune.models.gguf import converted
from fedtune.models.hardware import compute_dtype, resolve_device
from fedtune.models.layers import keep_steady, norms_in_float64
from fedtune.models.messages import quiet_loading
from fedtune.models.resolve import resolve

__all__ = ["LoadedBase", "load_base", "quantized_folder", "read_tokenizer"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoadedBase:
    """A base model ready for an adapter.

    Attributes:
        model: Frozen, in training mode without dropout of its own switched on by fedtune.
        hash: As `base_hash`.
        compute_dtype: Type of its arithmetic.
        device: ``cpu`` or ``cuda``.
    """

    model: PreTrainedModel
    hash: str
    compute_dtype: torch.dtype
    device: str


def load_base(config: ModelConfig) -> LoadedBase:
    """Load, quantize and freeze a base model.

    Guarantees:
        * The same files and settings give the same bytes, whether they come from a cache or not.
        * No parameter was left at a random value: all come from the files.
        * Evaluation mode and training mode compute the same function but for dropout.

    Raises:
        ModelError: FT301 to FT304, its files; FT307, its architecture; FT309, its arithmetic.
        MachineError: FT801, no GPU; FT802, the cache cannot be written.
    """
    device = resolve_device(config.device)
    dtype = compute_dtype(config, device)
    architecture(config)
    source = resolve(config)
    cache = cache_folder(config)
    if source.kind == "directory":
        folder, quantization = source.path, _quantization(config, dtype)
    elif config.quantization == "none":
        folder, quantization = converted(source.path, cache), None
    else:
        folder, quantization = quantized_folder(config), None
    model = _read(folder, config, quantization=quantization, dtype=dtype, device=device)
    model.requires_grad_(requires_grad=False)
    model.config.use_cache = False
    keep_steady(model)
    if dtype == torch.float64:
        norms_in_float64(model)
    model.train()
    return LoadedBase(model=model, hash=base_hash(config), compute_dtype=dtype, device=device)


def read_tokenizer(config: ModelConfig) -> Any:
    """Load the base model's tokenizer; one without a padding token pads with its end-of-text token.

    Raises:
        ModelError: FT301 to FT304, its files; FT310, it has no usable tokenizer.
    """
    source = resolve(config, weights=False)
    folder = source.path if source.kind == "directory" else converted(source.path, cache_folder(config))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizer's class raises is about its files
        text = str(error).strip().partition("\n")[0]
        raise ModelError(
            Problem(
                code="FT310",
                what=f"this model's tokenizer cannot be loaded: {text}",
                where=f"{folder} (model.name={config.name})",
                fix="copy tokenizer.json and tokenizer_config.json beside config.json",
            )
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _quantization(config: ModelConfig, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if config.quantization == "nf4":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    if config.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]
    return None


def quantized_folder(config: ModelConfig) -> Path:
    """Return the directory of a GGUF file's quantized copy, which the first call makes.

    Raises:
        ModelError: As `load_base`.
        MachineError: As `load_base`.
    """
    source, dtype = resolve(config), compute_dtype(config, resolve_device(config.device))
    cache = cache_folder(config)
    folder = converted(source.path, cache)
    name = str(dtype).removeprefix("torch.")
    key = cache_key(folder.name, config.quantization, name, version("bitsandbytes"), version("transformers"))

    def quantize(into: Path) -> None:
        model = _read(folder, config, quantization=_quantization(config, dtype), dtype=dtype, device="cpu")
        with quiet_loading():
            model.save_pretrained(into)

    return make_once(cache / "quantized" / key, quantize)


def _read(
    folder: Path,
    config: ModelConfig,
    *,
    quantization: BitsAndBytesConfig | None,
    dtype: torch.dtype,
    device: str,
) -> PreTrainedModel:
    where = f"{folder} (model.name={config.name})"
    try:
        with quiet_loading():
            loaded: tuple[PreTrainedModel, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                device_map={"": device},
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # found in the loading information, and refused below
                output_loading_info=True,
                # An explicit None would switch off what the config.json of a quantized copy says.
                **({} if quantization is None else {"quantization_config": quantization}),
            )  # type: ignore[assignment]
    except FedtuneError:
        raise
    except Exception as error:  # safetensors, transformers and bitsandbytes each raise their own about files
        text = str(error).strip().partition("\n")[0]
        raise ModelError(
            Problem(
                code="FT303",
                what=f"its weights cannot be loaded: {text}",
                where=where,
                fix="copy the model again; its weights are cut short, damaged, or another model's",
            )
        ) from error
    model, loading = loaded
    problems = [
        Problem(code="FT303", what=f"{what}, such as {keys[0]}", where=where, fix=fix)
        for what, keys, fix in (
            (
                f"its weights lack {len(loading['missing_keys'])} tensors",
                sorted(loading["missing_keys"]),
                "copy the model again: these would have been left at random values",
            ),
            (
                f"{len(loading['mismatched_keys'])} tensors have another shape than config.json says",
                sorted(str(key) for key in loading["mismatched_keys"]),
                "copy the model again: its config.json and its weights are of two models",
            ),
        )
        if keys
    ]
    if problems:
        raise ModelError(problems)
    if loading["unexpected_keys"]:
        unused = sorted(loading["unexpected_keys"])
        logger.warning(
            "%s: %d tensors have no place in it and are unused, such as %s", where, len(unused), unused[0]
        )
    return model
