"""Several adapters on one frozen base: in one forward pass, each works on tokens of its own.

The base's matrices are multiplied (and, where they are quantized, dequantized) once for the tokens of all;
only the small products with A and B are made for each adapter. Serving systems do so for inference (Sheng et
al., "S-LoRA", 2023, section 5; peft's ``adapter_names``), ASPEN for training (Ye et al., "ASPEN:
High-Throughput LoRA Fine-Tuning of Large Language Models with a Single GPU", 2023, section 4).

Legend of shapes:
    K  adapters
    r  their rank
    N  tokens of the forward pass, all adapters' together
    c  neighbouring adapters with equally many tokens each
    n  tokens of each of them
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear as PlainLora
from torch import Tensor, nn

from fedtune.models.adapted import AdaptedModel
from fedtune.models.adapter import Adapter, Factor
from fedtune.models.core import CoreUp
from fedtune.models.dropout_streams import DropoutStreams
from fedtune.models.span import Span

__all__ = ["StackedAdapters", "cannot_stack"]

_ADAPTER_NAME = "default"


@dataclass(frozen=True, kw_only=True)
class _Block:
    """Spans of equal length that are neighbours, of adapters that are neighbours: one batched product."""

    first: int
    count: int
    begin: int
    tokens: int

    def values(self, values: Tensor) -> Tensor:
        """Return a block's part of (N, width) values as (c, n, width)."""
        size = self.count * self.tokens
        own = values if size == len(values) else values[self.begin : self.begin + size]
        return own.view(self.count, self.tokens, -1)

    def adapters(self, stack: Tensor) -> Tensor:
        """Return a block's part of (K, …) factors as (c, …)."""
        return stack if self.count == len(stack) else stack[self.first : self.first + self.count]


def _blocks(spans: Sequence[Span]) -> tuple[_Block, ...]:
    blocks: list[_Block] = []
    for span in spans:
        last = blocks[-1] if blocks else None
        if last and (last.first + last.count, last.tokens) == (span.adapter, span.tokens):
            blocks[-1] = replace(last, count=last.count + 1)
        else:
            blocks.append(_Block(first=span.adapter, count=1, begin=span.begin, tokens=span.tokens))
    return tuple(blocks)


def cannot_stack(model: AdaptedModel) -> str | None:
    """Return why a model's adapters cannot be stacked, as a sentence's end; None where they can."""
    for name, module in _lora_layers(model).items():
        if not hasattr(module, "base_layer") or not hasattr(module, "lora_B"):
            return f"its layer {name} is a {type(module).__name__}"
    return None


def _lora_layers(model: AdaptedModel) -> dict[str, Any]:
    """Return peft's layers by the part of the adapter's names that comes before the factor."""
    layers = [name_A.removesuffix(".lora_A.weight") for name_A, _ in model.spec.pairs]
    return {name: model.model.get_submodule(name) for name in layers}


class StackedAdapters:
    """K adapters in the place of the one that is on a model.

    Guarantees:
        * Outside `spread` the model computes what it did before, with its own adapter, which is not touched.
        * An adapter's gradients are made from its own tokens alone, whatever the others' values are.
        * Where the scaling is a power of two, an adapter's share of an output is rounded as peft rounds it.

    Args:
        model: Base and adapter, of the rank of all adapters. What stands beside its adapter stays there.
        adapters: Where they start; of the model's names and shapes.
        factors: The factors to train.
    """

    def __init__(self, model: AdaptedModel, adapters: Sequence[Adapter], factors: Collection[Factor]) -> None:
        self._model = model
        self._trained = model.spec.names(factors)
        self._stacks = {
            name: torch.from_numpy(np.stack([adapter[name] for adapter in adapters]))
            .to(model.device)
            .requires_grad_(name in self._trained)
            for name in model.spec.shapes
        }
        self._parameters = [
            {name: nn.Parameter(self._stacks[name].detach()[number]) for name in self._trained}
            for number in range(len(adapters))
        ]
        self.dropout = DropoutStreams(len(adapters), model.device)

    def parameters(self, adapter: int) -> Mapping[str, nn.Parameter]:
        """Return an adapter's trained tensors by name; they share their memory with what is computed with."""
        return self._parameters[adapter]

    def read(self, adapter: int) -> Adapter:
        """Copy an adapter's tensors, those that are not trained too."""
        return {
            name: stack.detach()[adapter].to("cpu", copy=True).numpy() for name, stack in self._stacks.items()
        }

    def hand_out_gradients(self) -> None:
        """Give each adapter's parameters their share of the gradients."""
        for number, parameters in enumerate(self._parameters):
            for name, parameter in parameters.items():
                of_all = self._stacks[name].grad
                parameter.grad = None if of_all is None else of_all[number]

    def drop_gradients(self) -> None:
        """Forget all gradients."""
        for name in self._trained:
            self._stacks[name].grad = None
            for parameters in self._parameters:
                parameters[name].grad = None

    @contextmanager
    def spread(self, spans: Sequence[Span]) -> Iterator[None]:
        """Let each adapter work on its own tokens in forward and backward passes inside the block.

        Args:
            spans: Whose tokens are where: without a gap, in the order of the tokens.
        """
        layers, blocks = _lora_layers(self._model), _blocks(spans)
        self.dropout.begin_pass()
        try:
            for number, (name, layer) in enumerate(layers.items()):
                layer.forward = _LayerPass(
                    layer=layer,
                    A=self._stacks[f"{name}.lora_A.weight"],
                    B=self._stacks[f"{name}.lora_B.weight"],
                    blocks=blocks,
                    tokens=sum(span.tokens for span in spans),
                    dropout=partial(self.dropout.apply, number, spans),
                )
            yield
        finally:
            for layer in layers.values():
                layer.__dict__.pop("forward", None)


@dataclass(frozen=True, kw_only=True)
class _LayerPass:
    """What stands in for a layer's ``forward``.

    Attributes:
        layer: The layer of peft.
        A: (K, r, in).
        B: (K, out, r); for ``peft.method=core``, R (K, r, r).
        blocks: Whose tokens are where.
        tokens: How many there are.
        dropout: Gives an input after dropout with some probability.
    """

    layer: Any
    A: Tensor
    B: Tensor
    blocks: Sequence[_Block]
    tokens: int
    dropout: Callable[[Tensor, float], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        if (seen := x.shape[:-1].numel()) != self.tokens:
            raise ValueError(f"a layer sees {seen} of {self.tokens} tokens")
        layer, A, B = self.layer, self.A, self.B
        result: Tensor = layer.base_layer(x)
        if result._is_view():  # of a sum with a bias, which autograd does not let a function change in place
            result = result.clone()
        up, dropout = layer.lora_B[_ADAPTER_NAME], layer.lora_dropout[_ADAPTER_NAME]
        if isinstance(up, CoreUp):
            B = torch.matmul(up.up, B)  # U R
        if isinstance(dropout, nn.Dropout) and dropout.training and dropout.p > 0:
            x = self.dropout(x.to(A.dtype), dropout.p)
        # peft rounds a quantized layer's share to the base's type before it is added, a plain one's after.
        how = _How(
            blocks=self.blocks,
            scaling=layer.scaling[_ADAPTER_NAME],
            rounds_share=not isinstance(layer, PlainLora),
        )
        added: Tensor = _AddLora.apply(result, x, A, B, how)  # type: ignore[no-untyped-call]
        return added


@dataclass(frozen=True, kw_only=True)
class _How:
    blocks: Sequence[_Block]
    scaling: float
    rounds_share: bool


class _AddLora(torch.autograd.Function):
    """Add ``scaling * B_k A_k x`` to the tokens of each adapter k, in place."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd gives them by position
        ctx: Any, result: Tensor, x: Tensor, A: Tensor, B: Tensor, how: _How
    ) -> Tensor:
        """Return the result. It is (..., out), x (..., in), A (K, r, in), B (K, out, r)."""
        flat, out = x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1])
        inner = []
        for block in how.blocks:
            h = _product(block.values(flat).to(A.dtype), block.adapters(A).mT).mul_(how.scaling)
            inner.append(h.flatten(0, 1))
            target, up = block.values(out), block.adapters(B).mT
            if target.dtype == h.dtype:
                _add_product(target, h, up)
            else:
                share = _product(h, up)
                target.add_(share.to(target.dtype) if how.rounds_share else share)
        ctx.mark_dirty(result)
        ctx.save_for_backward(x, A, B, inner[0] if len(inner) == 1 else torch.cat(inner))
        ctx.how = how
        return result

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients; those of adapters that have no tokens here are zero."""
        x, A, B, inner = ctx.saved_tensors
        _, needs_x, needs_A, needs_B, _ = ctx.needs_input_grad
        gradient, flat = outputs[0].reshape(-1, outputs[0].shape[-1]), x.reshape(-1, x.shape[-1])
        of_A = torch.zeros_like(A) if needs_A else None
        of_B = torch.zeros_like(B) if needs_B else None
        of_x = torch.empty_like(flat) if needs_x else None
        for block in ctx.how.blocks:
            share = block.values(gradient).to(A.dtype)
            if of_B is not None:
                _product(share.mT, block.values(inner), out=block.adapters(of_B))
            if of_A is None and of_x is None:
                continue
            of_inner = _product(share, block.adapters(B)).mul_(ctx.how.scaling)
            if of_A is not None:
                _product(of_inner.mT, block.values(flat).to(A.dtype), out=block.adapters(of_A))
            if of_x is None:
                continue
            if of_x.dtype == A.dtype:
                _product(of_inner, block.adapters(A), out=block.values(of_x))
            else:
                block.values(of_x).copy_(_product(of_inner, block.adapters(A)))
        return outputs[0], None if of_x is None else of_x.view(x.shape), of_A, of_B, None


def _product(left: Tensor, right: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Return the products of (c, …) matrices; a batch of one goes to the plain product."""
    if len(left) > 1:
        return torch.bmm(left, right, out=out)
    return torch.mm(left[0], right[0], out=None if out is None else out[0])[None]


def _add_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    if len(left) > 1:
        target.baddbmm_(left, right)
    else:
        target[0].addmm_(left[0], right[0])
