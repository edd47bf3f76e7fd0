"""Sums of sketches of what changed, which sites can hold against the adapter that comes of them.

Under secure aggregation the server is not believed: a site trains no adapter that clipped updates cannot have
given (`fedtune.secagg.broadcast`). New factors from a sketch are in other coordinates every round, so what is
bounded is the product of a layer. With the received B A, which all know, a site's change is

    D_i = c_i (B_i A_i - B A),    c_i <= 1 such that ||D_i||_F <= rho,    rho = C sqrt(r (in + out))

where C is the clip bound: rho is the length of an update of A and B of which every value is C. The site sends
D_i Omega and Psi D_i, whose entries are within rho (`fedtune.aggregation.sketch.sketches`), so that the
encoding clips nothing more. The server adds them to the sketches of B A, finds M^ as in
`fedtune.aggregation.sketch`, and with t = min(1, rho / ||M^ - B A||_F) takes

    M~ = B A + t (M^ - B A),    B' A' = the best approximation of M~ of rank r.

Every mean of changes lies in the ball of radius rho around B A; going back to the nearest point of a ball
brings M^ no further from any point in it, and nearer where encoding or a narrow sketch pushed it out. Then

    ||B' A' - B A||_F <= ||B' A' - M~||_F + ||M~ - B A||_F <= 2 ||M~ - B A||_F <= 2 rho

since B A itself has rank r, and so B' A' is at least as near to M~ (Eckart and Young, 1936). This holds for
whatever came out of the sum, so an honest server never makes an adapter that sites refuse.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from fedtune.aggregation.checks import checked_result
from fedtune.aggregation.linear import WeightedMean
from fedtune.aggregation.lowrank import norm
from fedtune.aggregation.sketch import ROUNDING, recovered, sketches
from fedtune.aggregation.svd import shortened
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec, Factor
from fedtune.training.delta import Delta

__all__ = ["SketchedChange", "SketchedChangeAggregator", "product_bounds", "sketched_change"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SketchedChangeAggregator:
    """Trains A and B; sites send sketches of how far their product is from the one they received.

    Attributes:
        name: See `fedtune.aggregation.base.Aggregator`, as for the next two.
        exact: False: the mean of the products is cut to the adapter's rank.
        label: One line for reports.
        width: k, the rank of what is sent; at least twice the adapter's.
        clip: C.
    """

    name: str = "sketch"
    exact: bool = False
    label: str = "best approximation of a sketched mean of the products at the adapter's rank; inexact"
    width: int
    clip: float

    def factors(self, round: int) -> tuple[Factor, ...]:
        if round < 1:
            raise ValueError(f"rounds count from 1, got round={round}")
        return FACTORS

    def start(self, global_adapter: Adapter) -> SketchedChange:
        return SketchedChange(global_adapter, width=self.width, clip=self.clip)


class SketchedChange:
    """A running weighted sum of `sketched_change`; memory does not grow with clients.

    Guarantees:
        * Whatever was added, the result passes `fedtune.secagg.broadcast_product.check_later_product`.
        * At most k / 2 directions are looked for, so that the least-squares problem for the rest has twice
          as many rows as columns.
    """

    def __init__(self, received: Adapter, *, width: int, clip: float) -> None:
        self._received, self._width = received, width
        self._bounds = product_bounds({name: tensor.shape for name, tensor in received.items()}, clip)
        shapes: dict[str, tuple[int, ...]] = {}
        for name_A, name_B in self._bounds:
            shapes |= {name_A: (width, received[name_A].shape[1]), name_B: (received[name_B].shape[0], width)}
        self._sum = WeightedMean({name: np.zeros(shape) for name, shape in shapes.items()})

    def add(self, delta: Delta, weight: float) -> None:
        self._sum.add(delta, weight)

    def result(self) -> Adapter:
        mean, result = self._sum.result(), dict(self._received)
        for (name_A, name_B), bound in self._bounds.items():
            dtype = self._received[name_A].dtype
            B, A = self._received[name_B].astype(np.float64), self._received[name_A].astype(np.float64)
            Y, Z = sketches(B, A, name_A, self._width)
            left, right = recovered(
                Y + mean[name_B], Z + mean[name_A], name_A, ROUNDING[dtype], most=max(1, self._width // 2)
            )
            length = norm(np.hstack([left, -B]), np.vstack([right, A]))
            if length > bound:
                t = bound / length
                left, right = np.hstack([t * left, (1 - t) * B]), np.vstack([right, A])
            new_A, new_B = shortened(left, right, self._received[name_A])
            result[name_A], result[name_B] = new_A.astype(dtype), new_B.astype(dtype)
        return checked_result(result)


def product_bounds(shapes: Mapping[str, tuple[int, ...]], clip: float) -> dict[tuple[str, str], float]:
    """Return rho of each layer, by the names of its A and B.

    Args:
        shapes: Name of each tensor of the adapter to its shape, A (r, in) and B (out, r).
        clip: C.
    """
    return {
        (name_A, name_B): clip * sqrt(shapes[name_A][0] * (shapes[name_A][1] + shapes[name_B][0]))
        for name_A, name_B in AdapterSpec(shapes=dict(shapes), scaling=1.0, dtype="float64").pairs
    }


def sketched_change(
    trained: Mapping[str, np.ndarray[Any, Any]], received: Adapter, width: int, clip: float
) -> Delta:
    """Return a site's D Omega and Psi D of each layer, as tensors of an adapter of rank ``width``.

    Changes beyond rho are shortened to it; the site's own log says of how many layers.

    Args:
        trained: The site's adapter after training.
        received: The global adapter that it began with.
        width: k.
        clip: C.
    """
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    bounds = product_bounds({name: tensor.shape for name, tensor in received.items()}, clip)
    shortened_layers = 0
    for (name_A, name_B), bound in bounds.items():
        dtype = received[name_A].dtype
        left = np.hstack([trained[name_B].astype(np.float64), -received[name_B].astype(np.float64)])
        right = np.vstack([trained[name_A].astype(np.float64), received[name_A].astype(np.float64)])
        length = norm(left, right)
        if length > bound:
            left *= bound / length
            shortened_layers += 1
        Y, Z = sketches(left, right, name_A, width)
        tensors[name_B], tensors[name_A] = Y.astype(dtype), Z.astype(dtype)
    if shortened_layers:
        logger.warning(
            "the changes of %d of %d layers were longer than the clip bound %g allows, and are shortened",
            shortened_layers, len(bounds), clip,
        )  # fmt: skip
    return Delta(tensors={name: tensors[name] for name in received})
