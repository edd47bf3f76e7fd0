"""Sites grouped by how alike their updates are: agglomerative clustering with average linkage.

Every item begins as a group of its own, and the two groups with the least mean distance between their
members are merged, again and again (Sokal and Michener, 1958, "UPGMA"). Briggs, Fan and Andras, "Federated
learning with hierarchical clustering of local updates to improve training on non-IID data", IJCNN 2020,
arXiv:2004.11791, do this once, after some rounds over all sites, and train each group by itself from then on.
Sattler, Müller and Samek, "Clustered Federated Learning", IEEE TNNLS 32(8), 2021, arXiv:1910.01991, split in
two, again and again, whenever the mean update has become short and single ones are still long.

fedtune takes the one-shot way with a number of groups that the user gives. The recursive one has two bounds
on lengths of updates, which AdamW keeps alike however near an optimum is, and needs a federation that has
converged; a bound on distances would have to be found anew for each model, rank and number of steps, since
noise moves distances within a group towards 1, and one that is too low leaves each site alone. A number means
the same for 4 sites and for 50. The distances of the merges are given back, so that one can see whether
another number fits better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedtune.aggregation.lowrank import Matrix

__all__ = ["Grouping", "grouped"]


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """n items in groups.

    Attributes:
        groups: Positions of the members, in order; groups in the order of their first members.
        merge_distances: n - 1 mean distances, not ascending: the k-th, from 1, is that at which k + 1 groups
            become k. A large fall from one to the next says that the groups before the fall stand apart.
    """

    groups: tuple[tuple[int, ...], ...]
    merge_distances: tuple[float, ...]


def grouped(distances: Matrix, number: int) -> Grouping:
    """Merge items until a number of groups is left.

    Of pairs at the same distance the one whose first members come first is merged.

    Args:
        distances: (n, n), symmetric; the diagonal is not looked at.
        number: Of groups, from 1 to n.

    Raises:
        ValueError: The number is not from 1 to n.
    """
    if not 1 <= number <= len(distances):
        raise ValueError(f"{len(distances)} items cannot be {number} groups")
    groups = [[item] for item in range(len(distances))]
    sums = np.array(distances, dtype=np.float64)
    found = tuple(map(tuple, groups))
    merges: list[float] = []
    while len(groups) > 1:
        sizes = np.array([len(group) for group in groups])
        means = sums / np.outer(sizes, sizes)
        means[np.tril_indices(len(groups))] = np.inf
        first, second = (int(place) for place in np.unravel_index(means.argmin(), means.shape))
        merges.append(float(means[first, second]))
        groups[first] = sorted(groups[first] + groups.pop(second))
        sums[first] += sums[second]
        sums[:, first] += sums[:, second]
        sums = np.delete(np.delete(sums, second, axis=0), second, axis=1)
        if len(groups) == number:
            found = tuple(map(tuple, groups))
    return Grouping(groups=found, merge_distances=tuple(reversed(merges)))
