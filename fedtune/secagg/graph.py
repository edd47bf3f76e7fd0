"""Who shares keys with whom: everyone up to 128 members, a circulant graph above.

Bell et al. 2020 (CCS), section 4: with n members it is enough that each shares with O(log n) others, if
the graph is drawn after the identities are fixed. Here the transcript hash R orders the members on a
circle, and each shares with the h nearest on both sides (degree 2h). Two things must hold, whatever an
active server pretends about dropouts *after* it knows the graph:

    windows   every h consecutive members on the circle hold at least s survivors, which each client
              checks on U3 itself, and fewer than s corrupt ones, which chance guarantees. So every window
              holds an honest survivor, honest survivors follow each other at distance ≤ h, and the graph
              of honest survivors is connected: nothing but its whole sum can be isolated.
    shares    fewer than t of the 2h neighbours of anybody are corrupt, so no secret leaks.

The numbers come from the exact tail of the hypergeometric distribution, summed over all windows and
members: privacy fails with probability at most 2^-128, of which a server that tries 2^48 cohorts until it
likes the graph still leaves 2^-80; and an honest round with the assumed share of dropouts fails with at
most 2^-30.
"""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from typing import Final

from fedtune.secagg.problems import refusal
from fedtune.secagg.thresholds import COMPLETE_UP_TO, threshold

__all__ = ["Shape", "SharingGraph", "graph_shape", "sharing_graph"]

_PRIVACY_BITS: Final = 128
_DROPOUT_BITS: Final = 30


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Size of the graph for a cohort.

    Attributes:
        half_degree: h: neighbours on each side; 0 stands for the complete graph.
        window_survivors: s: survivors that every h consecutive members must have.
        share_threshold: t: shares that reconstruct a secret.
    """

    half_degree: int
    window_survivors: int
    share_threshold: int

    @property
    def complete(self) -> bool:
        return self.half_degree == 0


def _least_rare(population: int, marked: int, drawn: int, *, times: int, bits: int) -> int:
    """Smallest k such that `times` chances of drawing k or more marked ones stay at or below 2^-bits.

    Exact: integers only, without replacement, walking the hypergeometric tail down from its end by the
    ratio of neighbouring terms. Nobody draws more than min(marked, drawn), which is where it starts.
    """
    hits = min(marked, drawn)
    term = math.comb(marked, hits) * math.comb(population - marked, drawn - hits)
    allowed = math.comb(population, drawn) // (times << bits)
    tail = 0
    while tail + term <= allowed and hits >= 0:
        tail += term
        term = term * hits * (population - marked - drawn + hits)
        term //= (marked - hits + 1) * (drawn - hits + 1)
        hits -= 1
    return hits + 1


@functools.lru_cache(maxsize=64)
def graph_shape(members: int, corrupt_fraction: float, drop_fraction: float) -> Shape:
    """The smallest circulant graph for a cohort, or the complete one where that is no larger.

    Args:
        members: n = |U1|.
        corrupt_fraction: Assumed share of members that collude with the server, rounded up to members.
        drop_fraction: Assumed share that drops out between dealing and unmasking, rounded up.
    """
    complete = Shape(half_degree=0, window_survivors=0, share_threshold=threshold(members))
    if members <= COMPLETE_UP_TO:
        return complete
    low, high = 1, (members - 1) // 2 + 1
    while low < high:  # the smallest h that works; a larger window only sharpens both tails
        middle = (low + high) // 2
        if _fits(members, corrupt_fraction, drop_fraction, middle) is None:
            low = middle + 1
        else:
            high = middle
    if 2 * low >= members - 1:
        return complete
    shape = _fits(members, corrupt_fraction, drop_fraction, low)
    return shape or complete


def _fits(members: int, corrupt_fraction: float, drop_fraction: float, half: int) -> Shape | None:
    corrupt = math.ceil(corrupt_fraction * members)
    dropped = math.ceil(drop_fraction * members)
    degree = 2 * half
    if degree >= members - 1:
        return None
    # Windows and neighbourhoods are n events each, so both kinds get half of the failure probability.
    private = {"times": members, "bits": _PRIVACY_BITS + 1}
    alive = {"times": members, "bits": _DROPOUT_BITS + 1}
    survivors = _least_rare(members, corrupt, half, **private)
    shares = _least_rare(members - 1, corrupt, degree, **private)
    most_missing_in_window = _least_rare(members, dropped, half, **alive) - 1
    most_missing_neighbours = _least_rare(members - 1, dropped, degree, **alive) - 1
    if half - most_missing_in_window < survivors or degree - most_missing_neighbours < shares:
        return None
    return Shape(half_degree=half, window_survivors=survivors, share_threshold=shares)


@dataclass(frozen=True, kw_only=True)
class SharingGraph:
    """The graph of one attempt; members are indices into the sorted cohort.

    Attributes:
        members: n.
        shape: Degree and thresholds.
        circle: (n,) members in their order on the circle; empty for the complete graph.
    """

    members: int
    shape: Shape
    circle: tuple[int, ...]

    def neighbours(self, member: int) -> tuple[int, ...]:
        """Members that share keys with this one, ascending, without itself."""
        if self.shape.complete:
            return tuple(index for index in range(self.members) if index != member)
        at = self.circle.index(member)
        half = self.shape.half_degree
        return tuple(
            sorted(
                self.circle[(at + offset) % self.members] for offset in range(-half, half + 1) if offset != 0
            )
        )

    def all_neighbours(self) -> tuple[tuple[int, ...], ...]:
        """`neighbours` of every member, for the server."""
        if self.shape.complete:
            return tuple(self.neighbours(member) for member in range(self.members))
        around: list[tuple[int, ...]] = [()] * self.members
        half, circle = self.shape.half_degree, self.circle
        twice = circle + circle + circle
        for at, member in enumerate(circle):
            start = self.members + at
            around[member] = tuple(sorted(twice[start - half : start] + twice[start + 1 : start + half + 1]))
        return tuple(around)

    def thin_window(self, survivors: frozenset[int]) -> int | None:
        """Survivors in the emptiest window if it has fewer than s; None where all windows hold enough."""
        if self.shape.complete:
            return None
        half = self.shape.half_degree
        alive = [1 if member in survivors else 0 for member in self.circle]
        count = sum(alive[:half])
        least = count
        for at in range(self.members):
            count += alive[(at + half) % self.members] - alive[at]
            least = min(least, count)
        return least if least < self.shape.window_survivors else None


def sharing_graph(
    transcript: bytes, members: int, *, corrupt_fraction: float, drop_fraction: float
) -> SharingGraph:
    """The graph that the transcript hash R fixes: the same at every member and at the server.

    Raises:
        SecureAggregationError: FT908, there is nobody to share with.
    """
    if members < 2:
        raise refusal("FT908", f"a cohort of {members} has nobody to share with", where="U1")
    shape = graph_shape(members, corrupt_fraction, drop_fraction)
    if shape.complete:
        return SharingGraph(members=members, shape=shape, circle=())
    ranks = [
        hashlib.sha256(b"fedtune-secagg/1 circle" + transcript + index.to_bytes(4, "big")).digest()
        for index in range(members)
    ]
    circle = tuple(sorted(range(members), key=ranks.__getitem__))
    return SharingGraph(members=members, shape=shape, circle=circle)
