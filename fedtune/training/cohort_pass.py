"""One forward pass over microbatches of several clients, each with its own adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from fedtune.models.adapted import AdaptedModel
from fedtune.models.span import Span
from fedtune.models.stacked import StackedAdapters
from fedtune.training.batches import Microbatch
from fedtune.training.cohort_attention import attending, seen_by
from fedtune.training.loss import ResponseLoss

__all__ = ["CohortPass"]


class CohortPass:
    """Computes the clients' losses together.

    Guarantee: a client's loss and gradients are those of its own microbatch alone; a client whose numbers are
    not finite leaves the others' as they are.

    Args:
        model: The base that all share.
        adapters: The clients'.
    """

    def __init__(self, model: AdaptedModel, adapters: StackedAdapters) -> None:
        self._model, self._adapters = model.model, adapters
        self._loss = ResponseLoss(model.model)

    @contextmanager
    def losses(self, microbatches: Mapping[int, Microbatch], *, trained: bool) -> Iterator[dict[int, Tensor]]:
        """Give each client's summed loss; a backward pass has to be made inside the block.

        Args:
            microbatches: By client, in rising order.
            trained: Whether a backward pass follows.

        Yields:
            Nats by client, float64 scalars.
        """
        parts = list(microbatches.values())
        sizes = [part.token_ids.size for part in parts]
        begins = np.cumsum([0, *sizes])
        spans = [
            Span(adapter=client, begin=int(begin), tokens=size)
            for client, begin, size in zip(microbatches, begins, sizes, strict=False)
        ]
        alone = [self._loss.inputs(part) for part in parts]
        seen = [seen_by(self._model, inputs, trained=trained) for inputs in alone]
        together = {
            "input_ids": torch.cat([inputs["input_ids"].flatten() for inputs in alone])[None],
            "position_ids": torch.cat([inputs["position_ids"].flatten() for inputs in alone])[None],
            "use_cache": False,
        }
        places = [part.target_places + begin for part, begin in zip(parts, begins, strict=False)]
        with self._adapters.spread(spans), attending(self._model, seen):
            nats = self._loss.nats(
                together, np.concatenate(places), np.concatenate([part.target_ids for part in parts])
            )
            of_each = torch.split(nats, [len(part.target_ids) for part in parts])
            yield {client: own.sum() for client, own in zip(microbatches, of_each, strict=True)}
