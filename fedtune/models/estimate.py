"""What training a configuration will take, before any weights are read.

Memory has four parts (parameters, gradients, optimizer states, activations) beside what the libraries take.
Sizes come from the model's modules on the meta device; how much a library keeps of them was measured, and
each measured constant says so. For one training process; a test holds the sum to within a fifth of what a
real training run takes.

Legend: T tokens of a microbatch, P places whose logits are alive, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import psutil
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fedtune.config.derived import schedule_of, trained_factors, update_bytes
from fedtune.config.methods import METHODS, method
from fedtune.config.schema import Config
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import AdapterSpec, Factor
from fedtune.models.architecture import (
    architecture,
    check_quantization,
    count_parameters,
    is_linear,
    skeleton,
)
from fedtune.models.cache import cache_folder
from fedtune.models.gguf import is_converted
from fedtune.models.hardware import compute_dtype, resolve_device
from fedtune.models.resolve import resolve

__all__ = ["SCHEDULES", "Estimate", "estimate"]

SCHEDULES: dict[str, tuple[tuple[Factor, ...], ...]] = {name: m.schedule for name, m in METHODS.items()}
"""Factors that the rounds of a built-in aggregation train, in turn; another one is taken to train both."""

_MIB = 2**20
_LOSS_PLACES = 512  # the loss computes the head for so many places at a time
_LOGIT_COPIES = 3  # logits, log-probabilities and their gradient, in float32
_ADAPTER_COPIES = 3  # as received, as trained, and the difference
_READER_MIB = 240  # transformers' GGUF reader with its vocabulary; measured for 49,152 tokens
_WORKSPACE_MIB = 30  # scratch of the matrix libraries; measured
# Of freed tensors, glibc reuses few holes for the next aligned ones: 1.5 to 1.7 times the tensors alive was
# measured for SmolLM2-135M without checkpointing. With it, freed memory is returned at once (hardware.py),
# as torch's allocator on a GPU keeps its own.
_HEAP_FACTOR = 1.6
_RECOMPUTED_LAYERS = 3  # one layer recomputed, its gradients, and temporaries of both


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What one training process will take, and what a client and round will move.

    Attributes:
        device: ``cpu`` or ``cuda``.
        compute_dtype: Type of the base's arithmetic.
        base_parameters: Parameters of the base.
        adapter_parameters: Parameters of the adapter.
        parameters_mib: Base as it is held, and the adapter with its copies.
        gradients_mib: Of the factors that a round trains.
        optimizer_states_mib: AdamW's two moments of them; none for SGD.
        activations_mib: What the forward pass keeps for the backward one, and the logits.
        loading_mib: The most that loading takes; counts where it is more than training.
        libraries_mib: What this process held when it was asked: torch, transformers and the like.
        uplink_bytes: From a client to the server, masked or quantized as configured; mean over the rounds.
        downlink_bytes: From the server to a client, each round.
    """

    device: str
    compute_dtype: str
    base_parameters: int
    adapter_parameters: int
    parameters_mib: float
    gradients_mib: float
    optimizer_states_mib: float
    activations_mib: float
    loading_mib: float
    libraries_mib: float
    uplink_bytes: int
    downlink_bytes: int

    @property
    def training_mib(self) -> float:
        """The four parts."""
        return self.parameters_mib + self.gradients_mib + self.optimizer_states_mib + self.activations_mib

    @property
    def total_mib(self) -> float:
        """Peak of the process: the libraries, and the larger of loading and training."""
        return self.libraries_mib + max(self.loading_mib, self.training_mib)


def estimate(config: Config) -> Estimate:
    """Estimate memory and traffic; no weights are read.

    Call it before a model is loaded: the libraries' share is what this process holds at that moment.

    Raises:
        ModelError: FT301 to FT304 and FT307, the model's files; FT305 and FT306, the target list; FT309, the
            arithmetic; FT311, the quantization.
        MachineError: FT801, no GPU.
    """
    model = config.model
    device = resolve_device(model.device)
    dtype = compute_dtype(model, device)
    described = architecture(model)
    bare = skeleton(described)
    check_quantization(bare, model, device)
    spec = adapter_spec(model, config.peft)
    schedule = schedule_of(config)
    trained = max((spec.parameters(trained_factors(config, factors)) for factors in schedule), default=0)
    base = _base_bytes(bare, model.quantization, dtype.itemsize)
    parameters = base + _ADAPTER_COPIES * spec.nbytes() + spec.nbytes()
    itemsize = 8 if spec.dtype == "float64" else 4
    state_bytes = {"adamw8bit": 2, "sgd": 0}.get(config.training.optimizer, 2 * itemsize)
    width = config.aggregation.sketch_width if method(config.aggregation.method).sketches else None
    sent = spec if width is None else spec.with_rank(width)
    sent_sizes = [[prod(sent.shapes[name]) for name in sent.names(factors)] for factors in schedule]
    sizes = sum(prod(sent.shapes[name]) for factors in schedule for name in sent.names(factors))
    variates = itemsize * sizes // len(schedule) if config.training.control_variates else 0
    proximal = trained * itemsize if config.training.proximal_mu > 0 or config.personal.name == "ditto" else 0
    # The federation's variates, the site's own, the correction, the sum of gradients and their mean.
    controls = 5 * trained * itemsize if config.training.control_variates else 0
    return Estimate(
        device=device,
        compute_dtype=str(dtype).removeprefix("torch."),
        base_parameters=count_parameters(bare),
        adapter_parameters=spec.parameters(),
        parameters_mib=(parameters + proximal + controls) / _MIB,
        gradients_mib=trained * itemsize / _MIB,
        optimizer_states_mib=trained * state_bytes / _MIB,
        activations_mib=_activation_bytes(config, bare, described, spec=spec, dtype=dtype, device=device)
        / _MIB,
        loading_mib=_loading_bytes(config, bare, base) / _MIB,
        libraries_mib=psutil.Process().memory_info().rss / _MIB,
        uplink_bytes=sum(update_bytes(config, sizes, itemsize=itemsize) for sizes in sent_sizes)
        // len(schedule)
        + variates,
        downlink_bytes=spec.nbytes() + variates,
    )


def _matrices(model: PreTrainedModel) -> dict[str, tuple[int, int]]:
    """Name to (inputs, outputs) of each linear layer but the output head."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    found = {}
    for name, module in model.named_modules():
        if is_linear(module) and module is not head:
            first, second = module.get_parameter("weight").shape
            found[name] = (first, second) if isinstance(module, Conv1D) else (second, first)
    return found


def _base_bytes(model: PreTrainedModel, quantization: str, itemsize: int) -> float:
    matrices = _matrices(model)
    quantized = sum(prod(shape) for shape in matrices.values())
    rest = count_parameters(model) - quantized
    if quantization == "nf4":
        # Half a byte a value, a byte of scale for 64 values, and 4 bytes for 256 scales (QLoRA, section 3).
        return rest * itemsize + quantized * (0.5 + 1 / 64 + 4 / (64 * 256))
    if quantization == "int8":
        return rest * itemsize + quantized + 4 * sum(outputs for _, outputs in matrices.values())
    return float((rest + quantized) * itemsize)


def _activation_bytes(
    config: Config,
    model: PreTrainedModel,
    described: PreTrainedConfig,
    *,
    spec: AdapterSpec,
    dtype: torch.dtype,
    device: str,
) -> float:
    text = described.get_text_config()
    tokens = config.training.microbatch_tokens
    adapter_itemsize = 8 if spec.dtype == "float64" else 4
    adapted = {
        first.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for first, _ in spec.pairs
    }
    # Without dropout a LoRA layer keeps its input once; with it, the mask and what is left of the input.
    inputs_kept = 2 if config.peft.dropout > 0 else 1
    per_token = 0.0
    for name, (inputs, outputs) in _matrices(model).items():
        per_token += outputs * dtype.itemsize
        if name in adapted:
            per_token += (inputs_kept * inputs + config.peft.rank) * adapter_itemsize
    norms = sum("norm" in type(module).__name__.lower() for module in model.modules())
    per_token += norms * text.hidden_size * adapter_itemsize  # norms compute in float32
    kept: float = per_token * tokens
    layers = text.num_hidden_layers
    checkpointing = config.training.gradient_checkpointing
    if checkpointing:
        between = layers * text.hidden_size * dtype.itemsize * tokens
        kept = between + _RECOMPUTED_LAYERS * kept / layers
    elif device == "cpu":
        kept *= _HEAP_FACTOR
    places = min(_LOSS_PLACES, tokens)
    exact = max(4, dtype.itemsize)
    logits: int = places * text.vocab_size * (_LOGIT_COPIES * exact)
    mask = tokens * tokens * dtype.itemsize if config.training.packing else 0
    return kept + logits + mask + _WORKSPACE_MIB * _MIB


def _loading_bytes(config: Config, model: nn.Module, base: float) -> float:
    """Most memory while the base is loaded: a source that is quantized is read beside the result."""
    source = resolve(config.model, weights=False)
    if source.kind == "gguf":
        if is_converted(source.path, cache_folder(config.model)):
            return base
        return base + 4 * count_parameters(model) + _READER_MIB * _MIB
    files = sum(file.stat().st_size for file in source.path.glob("*.safetensors"))
    return base if config.model.quantization == "none" else base + files
