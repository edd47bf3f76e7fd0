"""The sparse graph: its numbers against exact fractions, and its promise by brute force."""

from __future__ import annotations

import math
import os
import random
from fractions import Fraction

import pytest

from fedtune.errors import SecureAggregationError
from fedtune.secagg.graph import graph_shape, sharing_graph
from fedtune.secagg.thresholds import COMPLETE_UP_TO


def tail(population: int, marked: int, drawn: int, at_least: int) -> Fraction:
    """P[at least so many of the drawn are marked], straight from the definition."""
    count = sum(
        math.comb(marked, hits) * math.comb(population - marked, drawn - hits)
        for hits in range(at_least, min(marked, drawn) + 1)
    )
    return Fraction(count, math.comb(population, drawn))


@pytest.mark.parametrize(
    ("members", "corrupt", "drop"), [(129, 0.2, 0.1), (300, 0.1, 0.05), (1000, 0.2, 0.1), (1000, 0.3, 0.05)]
)
def test_failure_probabilities_hold_exactly_and_thresholds_are_the_least(members, corrupt, drop) -> None:
    shape = graph_shape(members, corrupt, drop)
    half, s, t = shape.half_degree, shape.window_survivors, shape.share_threshold
    bad, gone = math.ceil(corrupt * members), math.ceil(drop * members)
    privacy = members * (tail(members, bad, half, s) + tail(members - 1, bad, 2 * half, t))
    assert privacy <= Fraction(1, 2**128)
    assert 2 * members * tail(members, bad, half, s - 1) > Fraction(1, 2**128)
    assert 2 * members * tail(members - 1, bad, 2 * half, t - 1) > Fraction(1, 2**128)
    lost = members * (
        tail(members, gone, half, half - s + 1) + tail(members - 1, gone, 2 * half, 2 * half - t + 1)
    )
    assert lost <= Fraction(1, 2**30)


def test_a_thousand_members_share_with_a_quarter() -> None:
    shape = graph_shape(1000, 0.2, 0.1)
    assert (shape.half_degree, shape.window_survivors, shape.share_threshold) == (133, 93, 134)


def test_up_to_128_and_where_sparse_would_not_be_smaller_the_graph_is_complete() -> None:
    assert graph_shape(COMPLETE_UP_TO, 0.2, 0.1).complete
    assert graph_shape(130, 0.45, 0.4).complete
    assert not graph_shape(COMPLETE_UP_TO + 1, 0.2, 0.1).complete
    graph = sharing_graph(os.urandom(32), 5, corrupt_fraction=0.2, drop_fraction=0.1)
    assert graph.neighbours(2) == (0, 1, 3, 4)
    assert graph.thin_window(frozenset({0})) is None


def test_nobody_to_share_with_is_refused() -> None:
    with pytest.raises(SecureAggregationError, match="nobody to share with"):
        sharing_graph(bytes(32), 1, corrupt_fraction=0.2, drop_fraction=0.1)


def test_neighbourhood_is_mutual_regular_and_drawn_from_the_transcript() -> None:
    transcript = os.urandom(32)
    graph = sharing_graph(transcript, 200, corrupt_fraction=0.2, drop_fraction=0.1)
    around = graph.all_neighbours()
    for member in range(200):
        assert around[member] == graph.neighbours(member)
        assert len(set(around[member])) == 2 * graph.shape.half_degree
        assert member not in around[member]
        assert all(member in around[peer] for peer in around[member])
    again = sharing_graph(transcript, 200, corrupt_fraction=0.2, drop_fraction=0.1)
    assert again.circle == graph.circle
    other = sharing_graph(os.urandom(32), 200, corrupt_fraction=0.2, drop_fraction=0.1)
    assert other.circle != graph.circle


def honest_survivors_connected(graph, honest: set[int]) -> bool:
    start = min(honest)
    seen, queue = {start}, [start]
    around = graph.all_neighbours()
    while queue:
        for peer in around[queue.pop()]:
            if peer in honest and peer not in seen:
                seen.add(peer)
                queue.append(peer)
    return seen == honest


def test_whatever_passes_the_window_check_leaves_the_honest_survivors_connected() -> None:
    """Random corrupt members; dropouts chosen by an adversary that knows the circle."""
    rng = random.Random(7)
    passed = refused = 0
    for _ in range(40):
        graph = sharing_graph(rng.randbytes(32), 150, corrupt_fraction=0.2, drop_fraction=0.1)
        corrupt = set(rng.sample(range(150), 30))
        start, length = rng.randrange(150), rng.randrange(10, 40)
        targeted = [graph.circle[(start + step) % 150] for step in range(length)]
        dropped = {member for member in targeted if member not in corrupt}
        survivors = frozenset(range(150)) - dropped
        if graph.thin_window(survivors) is None:
            passed += 1
            assert honest_survivors_connected(graph, set(survivors - corrupt))
        else:
            refused += 1
    assert passed
    assert refused


def test_dropping_all_neighbours_of_one_member_is_refused() -> None:
    graph = sharing_graph(os.urandom(32), 300, corrupt_fraction=0.2, drop_fraction=0.1)
    victim = 17
    survivors = frozenset(range(300)) - set(graph.neighbours(victim))
    assert graph.thin_window(survivors) is not None


def test_the_assumed_share_of_random_dropouts_passes() -> None:
    rng = random.Random(3)
    for _ in range(50):
        graph = sharing_graph(rng.randbytes(32), 200, corrupt_fraction=0.2, drop_fraction=0.1)
        survivors = frozenset(range(200)) - set(rng.sample(range(200), 20))
        assert graph.thin_window(survivors) is None
