"""The public rules by which an update becomes integers of a ring, and the proof that no sum overflows.

An entry x of a tensor with clip bound C, of a member with weight w, becomes

    q = round( L · (w / N) · clip(x, −C, C) / C )      in [−L, L],  N = the greatest weight,

by stochastic rounding, as an element of Z_{2^b}. The sum over n members lies in [−nL, nL]; it is read back
without ambiguity because **n · L < 2^(b−1)**, which is checked before a round starts. With S the sum of q
and W the sum of weights, the decoded mean is C · N · S / (L · W). Every |q − exact| < 1, so

    |decoded − exact mean of the clipped updates| ≤ n · C · N / (L · W)        for every entry, always,
    standard deviation of the difference          ≤ ½ · √n · C · N / (L · W)   (rounding errors are
                                                       independent, unbiased, of variance at most ¼).

Beside the vector travel *lanes*, 64-bit integers: the count (1 for each member), the weight, and metrics
that the sites' policies allow.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.canonical import digest
from fedtune.secagg.layout import TensorBound
from fedtune.secagg.problems import problem, refusal

__all__ = ["METRIC_LEVELS", "RING_DTYPES", "Encoding", "MetricLane", "RingBits", "greatest_levels"]

RingBits = Literal[16, 32, 64]
RING_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    16: np.dtype("<u2"),
    32: np.dtype("<u4"),
    64: np.dtype("<u8"),
}
METRIC_LEVELS: Final = 2**40
"""Levels of a metric lane: its value is kept to bound / 2^40."""
_MOST_LEVELS: Final = 2**40  # beyond this a double has too few bits left for the fraction that rounding needs


def greatest_levels(ring_bits: RingBits, max_cohort: int) -> int:
    """The largest L for which `max_cohort` members cannot overflow the ring: n · L < 2^(b−1).

    Raises:
        SecureAggregationError: FT915, the ring has not even one level for so many members.
    """
    levels = min(((1 << (ring_bits - 1)) - 1) // max_cohort, _MOST_LEVELS)
    if levels < 1:
        raise refusal(
            "FT915",
            f"a ring of {ring_bits} bits has no level left for {max_cohort} members",
            where="max_cohort",
        )
    return levels


@dataclass(frozen=True, kw_only=True)
class MetricLane:
    """A number that the sites' policies allow into the sum, such as the loss.

    Attributes:
        name: What it is called in the decoded result.
        bound: Values are clipped to [−bound, bound]; resolution is bound / METRIC_LEVELS.
    """

    name: str
    bound: float


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What every member must encode with, bit for bit; `hash` is bound into each advert.

    Attributes:
        tensors: The tensors in their order in the vector, with their bounds.
        ring_bits: b: arithmetic is modulo 2^b; also the wire's bits for each parameter.
        levels: L above.
        max_cohort: Greatest number of members n for which overflow is excluded.
        max_weight: N above; 1 where weights are uniform.
        metrics: Lanes beyond count and weight.

    Raises:
        SecureAggregationError: FT915 or FT914, all problems at once.
    """

    tensors: tuple[TensorBound, ...]
    ring_bits: RingBits = 32
    levels: int
    max_cohort: int
    max_weight: int = 1
    metrics: tuple[MetricLane, ...] = ()

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise SecureAggregationError(problems)

    @cached_property
    def size(self) -> int:
        """Parameters in the vector."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def dtype(self) -> np.dtype[Any]:
        return RING_DTYPES[self.ring_bits]

    @property
    def lane_names(self) -> tuple[str, ...]:
        return ("count", "weight", *(metric.name for metric in self.metrics))

    @property
    def nbytes(self) -> int:
        """Bytes of one masked vector with its lanes on the wire."""
        return self.size * self.dtype.itemsize + 8 * len(self.lane_names)

    @cached_property
    def hash(self) -> bytes:
        """SHA-256 over every rule above: members with different rules never share a sum."""
        parts: list[bytes | str | int] = [
            self.ring_bits,
            self.levels,
            self.max_cohort,
            self.max_weight,
            len(self.tensors),
        ]
        for tensor in self.tensors:
            parts += [tensor.name, len(tensor.shape), *tensor.shape, struct.pack(">d", tensor.bound)]
        for metric in self.metrics:
            parts += [metric.name, struct.pack(">d", metric.bound)]
        return digest("encoding", *parts)

    def prove_no_overflow(self, members: int) -> None:
        """Check n · L < 2^(b−1) for a cohort of `members`, and the same for the 64-bit lanes.

        Raises:
            SecureAggregationError: FT915 with the numbers.
        """
        problems = _overflows(self, members)
        if problems:
            raise SecureAggregationError(problems)

    @property
    def excess(self) -> float:
        """N / L: by how much, relative to its bound, a decoded mean may exceed the bound."""
        return self.max_weight / self.levels

    def error_bound(self, tensor: TensorBound, *, count: int, total_weight: int) -> float:
        """Greatest difference of a decoded mean's entry from the exact one: n · C · N / (L · W).

        The arithmetic in doubles adds at most 2^-50 · C to it.
        """
        return count * tensor.bound * self.max_weight / (self.levels * total_weight)

    def error_deviation(self, tensor: TensorBound, *, count: int, total_weight: int) -> float:
        """Bound of that difference's standard deviation: ½ · √n · C · N / (L · W)."""
        return math.sqrt(count) / 2 * tensor.bound * self.max_weight / (self.levels * total_weight)


def _overflows(encoding: Encoding, members: int) -> list[Problem]:
    problems = []
    if members * encoding.levels >= 2 ** (encoding.ring_bits - 1):
        problems.append(
            problem(
                "FT915",
                f"{members} members x {encoding.levels} levels do not stay below 2^{encoding.ring_bits - 1}",
                where="levels",
            )
        )
    if members * max(encoding.max_weight, METRIC_LEVELS) >= 2**63:
        problems.append(
            problem(
                "FT915",
                f"{members} members x weight {encoding.max_weight} overflow a lane",
                where="max_weight",
            )
        )
    return problems


def _problems(encoding: Encoding) -> list[Problem]:
    problems = []
    if encoding.ring_bits not in RING_DTYPES:
        return [
            problem("FT914", f"rings have 16, 32 or 64 bits, got {encoding.ring_bits}", where="ring_bits")
        ]
    for key in ("levels", "max_cohort", "max_weight"):
        if getattr(encoding, key) < 1:
            problems.append(problem("FT914", f"{key} is at least 1, got {getattr(encoding, key)}", where=key))
    if encoding.levels > _MOST_LEVELS:
        problems.append(problem("FT914", f"levels is at most 2^40, got {encoding.levels}", where="levels"))
    if not encoding.tensors:
        problems.append(problem("FT914", "there is no tensor to encode", where="tensors"))
    names = ["count", "weight", *(metric.name for metric in encoding.metrics)]
    if len(set(names)) != len(names):
        problems.append(problem("FT914", f"lane names are distinct, got {names}", where="metrics"))
    for metric in encoding.metrics:
        if not (math.isfinite(metric.bound) and metric.bound > 0):
            problems.append(
                problem("FT914", f"{metric.name} needs a positive bound, got {metric.bound}", where="metrics")
            )
    return problems or _overflows(encoding, encoding.max_cohort)
