"""The sum of a round without masks: each update is added when it comes, in the order of the names."""

from __future__ import annotations

from collections.abc import Callable, Collection

from fedtune.errors import UpdateError
from fedtune.federation.in_order import InOrder
from fedtune.training.delta import Delta

__all__ = ["PlainSum"]


class PlainSum:
    """Grows through all attempts at a round: an update that has arrived is not asked for again.

    Guarantees:
        * The order of arrival changes nothing. A round that is asked for again gives the bits of one that was
          not disturbed, where the same sites answer in the end.
        * An update is held only while one before it may still come: a site that failed may answer in the next
          attempt, and holds up those behind it until the last.

    Args:
        add: Adds the update of a site, given by its name, with its weight.
    """

    def __init__(self, add: Callable[[str, Delta, float], None]) -> None:
        self.weights: dict[str, float] = {}
        self._add = add
        self._in_order = InOrder[Delta](self._pass)
        self._broken: UpdateError | None = None

    def expect(self, cohort: Collection[str]) -> None:
        """Begin an attempt with this cohort, of which some may have answered in an earlier one."""
        self._in_order.expect(cohort)

    def take(self, name: str, delta: Delta, weight: float, *, gone: Collection[str] = ()) -> None:
        """Take a site's update.

        Args:
            name: Of the site.
            delta: As it was decoded.
            weight: The site's weight.
            gone: Sites whose update will not come in this round any more.
        """
        self.weights[name] = weight
        self.weights = dict(sorted(self.weights.items()))
        self._in_order.arrived(name, delta, gone=gone)

    def finish(self) -> None:
        """Add what is still held.

        Raises:
            UpdateError: The method could not add an update. It is raised here and not from `take`, where it
                would be laid on the site whose answer came last.
        """
        self._in_order.finish()
        if self._broken is not None:
            raise self._broken

    def _pass(self, name: str, delta: Delta) -> None:
        if self._broken is not None:
            return
        try:
            self._add(name, delta, self.weights[name])
        except UpdateError as error:
            self._broken = error
