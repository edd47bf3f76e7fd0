"""What an aggregation method is: which factors a round trains, and how clients' deltas become one adapter.

An own method is a class with these members, named in the entry-point group ``fedtune.aggregators`` of an
installed package. It is found by its name in ``aggregation.method``, in simulation and on a coordinator; it
never comes from a message.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from fedtune.models.adapter import Adapter, Factor
from fedtune.training.delta import Delta

__all__ = ["Accumulator", "Aggregator"]


@runtime_checkable
class Accumulator(Protocol):
    """One round's result, fed one delta at a time.

    Guarantees an implementation gives:
        * The same deltas and weights in the same order give the same adapter, bit for bit. Callers add
          clients in the order of their names.
        * Memory does not grow with the number of clients, where the method needs the sum of the updates and
          nothing else (``summable`` in `fedtune.config.methods`).
    """

    def add(self, delta: Delta, weight: float) -> None:
        """Take one client's delta into account.

        Args:
            delta: A checked delta of the factors of this round.
            weight: The client's weight, at least 0, in any unit: only ratios between clients count.

        Raises:
            UpdateError: FT506 a weight that is negative or not a number, FT507 a delta whose tensors differ
                from the adapter's or from those of the deltas before it.
        """

    def result(self) -> Adapter:
        """Return the new global adapter: new arrays of the spec's names, shapes and dtype.

        Raises:
            UpdateError: FT506 the weights sum to zero, FT508 the result is not finite.
        """


@runtime_checkable
class Aggregator(Protocol):
    """An aggregation method. It keeps no state between rounds."""

    @property
    def name(self) -> str:
        """What ``aggregation.method`` calls it."""

    @property
    def exact(self) -> bool:
        """Whether the new product B A is the weighted mean of the clients' products, up to rounding."""

    @property
    def label(self) -> str:
        """One line for reports: what is averaged, and whether that is exact."""

    def factors(self, round: int) -> tuple[Factor, ...]:
        """Return the factors that are trained and travel in a round; rounds count from 1."""

    def start(self, global_adapter: Adapter) -> Accumulator:
        """Begin a round whose clients all received ``global_adapter``; it is not modified."""
