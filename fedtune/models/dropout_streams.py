"""The dropout of several adapters in one forward pass: each draws from a random stream of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedtune.models.span import Span

__all__ = ["DropoutStreams"]


class DropoutStreams:
    """Random streams by adapter.

    Guarantees:
        * An adapter's masks are those that it would get alone, seeded alike, from layers of this order.
        * A layer that is computed again in the backward pass (checkpointing) gets the masks that it had.

    Args:
        count: How many adapters there are.
        device: Where the masks are drawn.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self._device = device
        self._states = [self._state() for _ in range(count)]
        self._before: dict[tuple[int, int], Tensor] = {}

    def seed(self, adapter: int, seed: int) -> None:
        """Begin an adapter's stream anew, as `torch.manual_seed` would."""
        torch.manual_seed(seed)
        self._states[adapter] = self._state()

    def begin_pass(self) -> None:
        """Forget which layers were computed already."""
        self._before.clear()

    def apply(self, layer: int, spans: Sequence[Span], x: Tensor, p: float) -> Tensor:
        """Return a layer's input after dropout.

        Args:
            layer: Which layer it is.
            spans: Whose tokens are where.
            x: (..., width) input.
            p: Probability that a value is dropped.
        """
        flat, dropped = x.reshape(-1, x.shape[-1]), []
        for span in spans:
            key = layer, span.adapter
            again = key in self._before
            before = self._before.setdefault(key, self._states[span.adapter])
            self._restore(before)
            dropped.append(torch.dropout(flat[span.begin : span.begin + span.tokens], p, train=True))
            if not again:
                self._states[span.adapter] = self._state()
        return torch.cat(dropped).view(x.shape)

    def _state(self) -> Tensor:
        if self._device.type == "cuda":
            return torch.cuda.get_rng_state(self._device)
        return torch.get_rng_state()

    def _restore(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)
