"""The loss on the response: a sum of nats over the tokens that are targets.

The head (hidden states to logits over the vocabulary) is computed for the needed places only, and a few
hundred of them at a time together with their gradient: neither the logits of a whole microbatch nor their
gradient are ever alive at once. For SmolLM2 a place costs 49,152 logits; its hidden state has 576 numbers.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from fedtune.training.batches import Ints, Microbatch

__all__ = ["ResponseLoss"]

_CHUNK = 512
"""Places whose logits are alive at once."""

_ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention", "attention"}


class ResponseLoss:
    """Computes a model's loss on microbatches.

    Guarantees:
        * The value is the sum, over the targets, of the negative log-likelihood in nats; sums of
          microbatches add up to the sum of the step, whatever the microbatches are.
        * Logits are turned into losses in float32 (float64 for a float64 model), and summed in float64.
        * Gradients are those of that sum.

    Args:
        model: A causal language model of transformers, plain or wrapped by peft.

    Attributes:
        packs: Rows may stand end to end in one sequence: the model takes position ids and mixes tokens by
            attention alone.
        shares_prefix: Rows may also see a prefix in common: no layer limits attention to a window.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
        config = base.config.get_text_config()
        layers = set(_layer_types(config))
        self._model = model
        self._head: torch.nn.Module = base.get_output_embeddings()
        self._embedding: Tensor = base.get_input_embeddings().weight
        takes_positions = "position_ids" in inspect.signature(base.forward).parameters
        self.packs = takes_positions and layers <= _ATTENTION_LAYERS
        self.shares_prefix = (
            self.packs
            and layers <= {"full_attention", "attention"}
            and config._attn_implementation in {"eager", "sdpa"}
            and not getattr(config, "sliding_window", None)
            and not getattr(config, "attention_chunk_size", None)
        )
        self._takes_positions = takes_positions
        # A trainable head needs its own gradient, which the chunked loss does not make.
        self._whole_logits = any(parameter.requires_grad for parameter in self._head.parameters())

    def __call__(self, microbatch: Microbatch) -> Tensor:
        """Return the summed loss of a microbatch, in nats: a float64 scalar."""
        inputs = self.inputs(microbatch)
        return self.nats(inputs, microbatch.target_places, microbatch.target_ids).sum()

    def nats(self, inputs: Mapping[str, Any], target_places: Ints, target_ids: Ints) -> Tensor:
        """Return the loss of each target.

        Args:
            inputs: Of the model.
            target_places: (P,) indices into the flattened input tokens.
            target_ids: (P,) the tokens to predict there.

        Returns:
            (P,) nats, float64.
        """
        device = self._embedding.device
        places = torch.from_numpy(target_places).to(device)
        targets = torch.from_numpy(target_ids).to(device)
        if not self._whole_logits:
            with _Narrowed(self._head, places, run_head=False) as narrowed:
                logits = self._model(**inputs).logits
            if logits is narrowed.output:
                return _ChunkedLoss.apply(narrowed.hidden, targets, self._head)  # type: ignore[no-any-return, no-untyped-call]
            # The model changes its logits after the head (a soft cap, a scale): let it see them.
            self._whole_logits = True
        with _Narrowed(self._head, places, run_head=True):
            logits = self._model(**inputs).logits
        return _cross_entropy(logits[0], targets)

    def inputs(self, microbatch: Microbatch) -> dict[str, Any]:
        """Return what the model takes for a microbatch."""
        device = self._embedding.device
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(microbatch.token_ids).to(device),
            "use_cache": False,  # with a cache, transformers does not look for packed rows
        }
        if self._takes_positions:
            inputs["position_ids"] = torch.from_numpy(microbatch.position_ids).to(device)
        if microbatch.attention_mask is not None:
            inputs["attention_mask"] = torch.from_numpy(microbatch.attention_mask).to(device)
        if self.shares_prefix and (visible := microbatch.visible()) is not None:
            # With four dimensions, transformers takes it as it is. Without, it finds rows by their positions.
            hidden = torch.from_numpy(~visible).to(device)
            mask = torch.zeros(hidden.shape, dtype=self._embedding.dtype, device=device)
            inputs["attention_mask"] = mask.masked_fill_(hidden, -torch.inf)[None, None]
        return inputs


def _layer_types(config: Any) -> list[str]:
    for name in ("layer_types", "layers_block_type"):
        if (types := getattr(config, name, None)) is not None:
            return list(types)
    return []


class _Narrowed:
    """While active, the head sees the states of the needed places only, as (1, P, hidden size).

    Done at the head itself because that works for every architecture and every layout, while
    `logits_to_keep` keeps the same places of each sequence, and not every model has it.

    Args:
        head: The module from hidden states to logits.
        places: (P,) indices into the flattened tokens.
        run_head: False keeps the states aside in ``hidden`` and gives the head none of them.
    """

    def __init__(self, head: torch.nn.Module, places: Tensor, *, run_head: bool) -> None:
        self._head = head
        self._places = places
        self._run_head = run_head
        self.hidden: Tensor | None = None
        self.output: Tensor | None = None

    def __enter__(self) -> _Narrowed:
        self._hooks = [
            self._head.register_forward_pre_hook(self._select),
            self._head.register_forward_hook(self._keep),
        ]
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _select(self, head: torch.nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *others = arguments
        self.hidden = hidden.flatten(0, -2).index_select(0, self._places)
        return (self.hidden[None] if self._run_head else self.hidden[None, :0], *others)

    def _keep(self, head: torch.nn.Module, arguments: object, output: Tensor) -> None:
        self.output = output


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy of ``head(hidden)`` at each place, and its gradient for ``hidden``, in one sweep.

    A place's gradient is known as soon as its loss is, so both come from one pass over the logits, and
    nothing is recomputed; it is made a chunk of places at a time. The head itself is frozen.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, head: torch.nn.Module) -> Tensor:
        """Return (P,) nats in float64. ``hidden``: (P, hidden size); ``targets``: (P,)."""
        needs_gradient = ctx.needs_input_grad[0]
        nats: list[Tensor] = []
        gradients: list[Tensor] = []
        for begin in range(0, len(targets), _CHUNK):
            states, wanted = hidden[begin : begin + _CHUNK], targets[begin : begin + _CHUNK]
            with torch.set_grad_enabled(needs_gradient):
                states = states.detach().requires_grad_(needs_gradient)
                found = _cross_entropy(head(states), wanted)
                if needs_gradient:
                    gradients += torch.autograd.grad(found.sum(), states)
            nats.append(found.detach())
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(nats)

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0].to(gradient.dtype)[:, None], None, None


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    exact = logits if logits.dtype == torch.float64 else logits.float()
    return torch.nn.functional.cross_entropy(exact, targets, reduction="none").double()
