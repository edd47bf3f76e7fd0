"""Where a LoRA adapter goes: the target list, checked against a model before any weights are read."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from fedtune.config.schema import PeftConfig
from fedtune.errors import ModelError, Problem
from fedtune.models.adapter import AdapterSpec
from fedtune.models.architecture import is_linear
from fedtune.models.core import CoreUp
from fedtune.models.messages import without_peft_warnings

__all__ = ["adapter_parameters", "add_lora", "check_targets", "set_adapter_shapes", "spec_of"]

_ADAPTER_NAME = "default"


def check_targets(model: PreTrainedModel, peft: PeftConfig) -> None:
    """Refuse a target list that does not fit the model.

    A target is a module's name or the end of it after a dot, as in peft: ``q_proj`` means that module of
    every layer. Embeddings and the output head are refused, for each of their adapter's rows or columns
    belongs to one token of the vocabulary: a site's update would show which words its data holds.

    Raises:
        ModelError: One FT305 for each target that matches nothing, one FT306 for each that is no linear
            layer or is token-indexed.
    """
    problems = list(_problems(model, _targets(peft)))
    if problems:
        raise ModelError(problems)


def _targets(peft: PeftConfig) -> tuple[str, ...]:
    if isinstance(peft.target_modules, str):
        return () if peft.target_modules == "all-linear" else (peft.target_modules,)
    return tuple(peft.target_modules)


def _problems(model: PreTrainedModel, targets: tuple[str, ...]) -> Iterator[Problem]:
    modules = {name: module for name, module in model.named_modules() if name}
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    token_indexed = {id(model.get_input_embeddings()), id(head)}
    fit = sorted(
        {
            name.rpartition(".")[2]
            for name, module in modules.items()
            if is_linear(module) and id(module) not in token_indexed
        }
    )
    for target in targets:
        where = f"peft.target_modules={target}"
        matched = [
            (name, module)
            for name, module in modules.items()
            if name == target or name.endswith(f".{target}")
        ]
        if not matched:
            close = get_close_matches(target.rpartition(".")[2], fit, n=2)
            hint = f"did you mean {' or '.join(close)}? " if close else ""
            yield Problem(
                code="FT305",
                what=f"no module of this model is called {target!r}",
                where=where,
                fix=f"{hint}It has {', '.join(fit)}; all-linear takes them all",
            )
            continue
        for name, module in matched:
            if id(module) in token_indexed or isinstance(module, nn.Embedding):
                what = f"{name} is indexed by tokens: an update of it would show which words the data holds"
            elif not is_linear(module):
                what = f"{name} is a {type(module).__name__}, not a linear layer"
            else:
                continue
            yield Problem(
                code="FT306", what=what, where=where, fix=f"take some of {', '.join(fit)}, or all-linear"
            )
            break  # the same in every layer: said once


def add_lora(base: PreTrainedModel, peft: PeftConfig, dtype: torch.dtype) -> PeftModel:
    """Put adapters on the base, in place, and freeze all else.

    Args:
        base: The base model, quantized or not, or its skeleton on the meta device.
        peft: The adapter's settings.
        dtype: float32, or float64 beside a float64 base.

    Returns:
        The model with ``A`` drawn from a fixed seed and ``B`` zero; torch's random state is as it was.

    Raises:
        ModelError: As `check_targets`.
    """
    check_targets(base, peft)
    base.requires_grad_(requires_grad=False)
    lora = LoraConfig(
        r=peft.rank,
        # peft takes and keeps a float; other readers of adapter_config.json expect a whole number.
        lora_alpha=int(peft.alpha) if float(peft.alpha).is_integer() else peft.alpha,  # type: ignore[arg-type]
        lora_dropout=peft.dropout,
        target_modules=list(_targets(peft)) or "all-linear",
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), without_peft_warnings():
        torch.manual_seed(0)
        model = get_peft_model(base, lora, adapter_name=_ADAPTER_NAME)
    assert isinstance(model, PeftModel)  # noqa: S101 - the other type is for prompt methods
    if peft.method == "core":
        _put_cores(model, dtype)
    for parameter in adapter_parameters(model).values():
        parameter.data = parameter.data.to(dtype)
    return model


def _put_cores(model: PeftModel, dtype: torch.dtype) -> None:
    """Put a trained (rank, rank) matrix and a frozen one in the place of each B."""
    for name, parameter in adapter_parameters(model).items():
        layer, mark, _ = name.rpartition(".lora_B.weight")
        if mark:
            factors = model.get_submodule(f"{layer}.lora_B")
            factors.add_module(_ADAPTER_NAME, CoreUp(name, parameter, dtype))


def adapter_parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters by their key in peft's state dict, sorted; they are not copies."""
    mark = f".{_ADAPTER_NAME}.weight"
    found = {
        name.removesuffix(mark) + ".weight": parameter
        for name, parameter in model.named_parameters()
        if name.endswith((f".lora_A{mark}", f".lora_B{mark}"))
    }
    return dict(sorted(found.items()))


def set_adapter_shapes(model: PeftModel, spec: AdapterSpec) -> None:
    """Give the adapter's parameters the shapes of a spec; their values are unset.

    Args:
        model: The adapted model.
        spec: Of the same names and type, with another rank.
    """
    for name, old in adapter_parameters(model).items():
        layer = model.get_submodule(f"{name.removesuffix('.weight')}.{_ADAPTER_NAME}")
        layer.weight = nn.Parameter(torch.empty(spec.shapes[name], dtype=old.dtype, device=old.device))


def spec_of(model: PeftModel, peft: PeftConfig) -> AdapterSpec:
    """Describe the adapter that is on a model."""
    parameters = adapter_parameters(model)
    return AdapterSpec(
        shapes={name: tuple(parameter.shape) for name, parameter in parameters.items()},
        scaling=peft.alpha / peft.rank,
        dtype=str(next(iter(parameters.values())).dtype).removeprefix("torch."),
    )
