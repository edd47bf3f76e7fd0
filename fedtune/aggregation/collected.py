"""The updates of a round, kept until all are there: for methods that need more of them than their sum."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

import numpy as np

from fedtune.aggregation.checks import check_update
from fedtune.aggregation.lowrank import Matrix
from fedtune.aggregation.weighting import problem_of_total
from fedtune.errors import UpdateError
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.training.delta import Delta

__all__ = ["CollectedUpdates", "pairs_of"]


class CollectedUpdates:
    """Checked deltas with their shares.

    Deltas are kept, not copied: memory is that of the updates themselves, and of one layer at a time in
    float64.
    """

    def __init__(self, received: Adapter) -> None:
        self.received = received
        self._updates: list[tuple[Delta, float]] = []
        self._added = 0

    def add(self, delta: Delta, weight: float) -> None:
        """As `fedtune.aggregation.base.Accumulator.add`; a client of weight 0 is checked and left out."""
        names = self._updates[0][0].tensors.keys() if self._updates else delta.tensors.keys()
        check_update(delta, weight, received=self.received, names=names, number=self._added + 1)
        self._added += 1
        if weight > 0:
            self._updates.append((delta, weight))

    def shares(self) -> list[float]:
        """Return p_i of each kept client; they sum to 1 up to rounding.

        Raises:
            UpdateError: FT506, the weights sum to zero, or to no number.
        """
        total = sum(weight for _, weight in self._updates)
        if not 0 < total < inf:
            raise UpdateError(problem_of_total(self._added, total))
        return [weight / total for _, weight in self._updates]

    def changes(self, name: str) -> Iterator[Matrix]:
        """Yield each kept client's change of a tensor in float64; zeros where it was not trained."""
        for delta, _ in self._updates:
            change = delta.tensors.get(name)
            yield np.zeros(self.received[name].shape) if change is None else change.astype(np.float64)

    def trained(self, name: str) -> Iterator[Matrix]:
        """Yield each kept client's tensor after its training, received + delta, in float64."""
        for change in self.changes(name):
            yield self.received[name] + change


def pairs_of(adapter: Adapter) -> tuple[tuple[str, str], ...]:
    """Return (name of A, name of B) of each layer, in sorted order."""
    shapes = {name: tensor.shape for name, tensor in adapter.items()}
    return AdapterSpec(shapes=shapes, scaling=1.0, dtype="float64").pairs
