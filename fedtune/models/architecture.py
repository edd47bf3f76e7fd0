"""What a model is, without its weights: its configuration, and its modules on torch's meta device."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedtune.config.schema import ModelConfig
from fedtune.errors import ModelError, Problem
from fedtune.models.cache import cache_folder
from fedtune.models.gguf import gguf_config
from fedtune.models.resolve import resolve

__all__ = ["architecture", "check_quantization", "count_parameters", "is_linear", "skeleton"]

_NF4_BLOCK = 64
_GENERATES = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def architecture(config: ModelConfig) -> PreTrainedConfig:
    """Read the description of a model, and refuse what fedtune cannot train.

    Raises:
        ModelError: FT301 and FT302, not to be found; FT303, a damaged description; FT304, a damaged GGUF
            file; FT307, no causal language model, or one that is quantized already.
    """
    source = resolve(config, weights=False)
    if source.kind == "gguf":
        return gguf_config(source.path, cache_folder(config))
    found = _read(source.path, config.name)
    problems = [
        Problem(code="FT307", what=what, where=f"{source.path} (model.name={config.name})", fix=fix)
        for what, fix in _misfits(found)
    ]
    if problems:
        raise ModelError(problems)
    return found


def _read(folder: Path, name: str) -> PreTrainedConfig:
    try:
        found: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the configuration classes of some 300 architectures raise what they like
        text = str(error).strip().partition("\n")[0]
        unknown = "does not recognize" in str(error) or "trust_remote_code" in str(error)
        raise ModelError(
            Problem(
                code="FT307" if unknown else "FT303",
                what="its architecture is none that the installed transformers knows"
                if unknown
                else f"its config.json is damaged: {text}",
                where=f"{folder} (model.name={name})",
                fix="code that comes with a model is never run: take a model of a known architecture, or a "
                "newer transformers"
                if unknown
                else "copy the model again",
            )
        ) from error
    return found


def _misfits(found: PreTrainedConfig) -> list[tuple[str, str]]:
    misfits = []
    declared = tuple(found.architectures or ())
    if declared and not any(name.endswith(_GENERATES) for name in declared):
        misfits.append(
            (f"{', '.join(declared)} is no causal language model", "take a model made to generate text")
        )
    elif type(found) not in AutoModelForCausalLM._model_mapping:
        misfits.append(
            (
                f"transformers has no causal language model for {found.model_type!r}",
                "take a decoder-only model, such as a Llama, Qwen or Mistral",
            )
        )
    quantized = getattr(found, "quantization_config", None)
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized
        misfits.append(
            (
                f"its weights are quantized already ({method})",
                "take the unquantized model: fedtune quantizes it itself, the same way at every site",
            )
        )
    return misfits


def skeleton(config: PreTrainedConfig) -> PreTrainedModel:
    """Build the model's modules on the meta device: names and shapes, no memory, no weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            config, trust_remote_code=False
        )
    return model


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by a matrix; GPT-2 and its kin keep theirs transposed."""
    return isinstance(module, nn.Linear | Conv1D)


def check_quantization(model: PreTrainedModel, config: ModelConfig, device: str) -> None:
    """Refuse a quantization that would compute with other weights than the model's.

    On CPUs, bitsandbytes 0.50 reads an NF4 matrix as if each row began a block of 64 values. Where the
    number of inputs is no multiple of 64, it takes the scales of other blocks, without a word.

    Raises:
        ModelError: FT311.
    """
    if config.quantization != "nf4" or device != "cpu":
        return
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    wrong = []
    for name, module in model.named_modules():
        if not is_linear(module) or module is head:  # the head is not quantized
            continue
        inputs = module.weight.shape[0] if isinstance(module, Conv1D) else module.weight.shape[-1]
        if inputs % _NF4_BLOCK:
            wrong.append((name, inputs))
    if wrong:
        name, inputs = wrong[0]
        raise ModelError(
            Problem(
                code="FT311",
                what=f"NF4 on a CPU needs layers with a multiple of {_NF4_BLOCK} inputs; {len(wrong)} of "
                f"this model have others, such as {name} with {inputs}",
                where=f"model.quantization=nf4, model.name={config.name}",
                fix="set model.quantization=int8 or none",
            )
        )


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of an unquantized model; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
