"""The split that a configuration asks for, by a built-in method or a plug-in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points

import numpy as np

from fedtune.config.keys import similar
from fedtune.config.schema import PartitionConfig
from fedtune.data.examples import Example
from fedtune.data.partition import methods
from fedtune.data.partition.base import Partition, check_complete
from fedtune.errors import DataError, Problem

__all__ = ["METHODS", "PARTITIONERS_GROUP", "label_counts", "partition"]

PARTITIONERS_GROUP = "fedtune.partitioners"
"""Entry-point group of partitioner plug-ins: a callable (examples, PartitionConfig, seed) that gives a
mapping from site names to row positions."""

METHODS: Mapping[str, Callable[[Sequence[Example], PartitionConfig, int], Partition]] = {
    "natural": methods.natural,
    "iid": methods.iid,
    "dirichlet": methods.dirichlet,
    "quantity": methods.quantity,
    "shards": methods.shards,
}

_OTHER, _NONE = "other", "(none)"


def partition(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Partition:
    """Split a dataset over sites.

    Guarantees:
        - No row is lost and none is at two sites; ``natural`` with ``partition.values`` takes only the rows
          with these values, and ``left_out`` counts the others.
        - Every site has at least ``partition.min_examples`` rows.
        - The same rows, configuration and seed give the same split on every machine.

    Args:
        examples: The rows.
        config: The method and what it needs.
        seed: The run's seed.

    Raises:
        DataError: FT220 to FT223, a split that cannot be made as asked.
    """
    if config.method in METHODS:
        return METHODS[config.method](examples, config, seed)
    return _by_plugin(examples, config, seed)


def label_counts(
    examples: Sequence[Example], split: Partition, config: PartitionConfig, *, max_labels: int = 12
) -> tuple[tuple[str, ...], np.ndarray]:
    """Count the rows of each label at each site.

    Args:
        examples: The rows that were split.
        split: The split.
        config: ``column`` is the label; without one, all rows count as one label named ``rows``.
        max_labels: Beyond this many, the rarest labels are counted together as ``other``.

    Returns:
        The labels, commonest first, and counts of shape (sites, labels), int64.
    """
    own = [[_label(examples[row], config.column) for row in rows] for rows in split.indices]
    total = Counter(label for site in own for label in site)
    labels = sorted(total, key=lambda label: (-total[label], label))
    if len(labels) > max_labels:
        labels = [*labels[: max_labels - 1], _OTHER]
    position = {label: index for index, label in enumerate(labels)}
    counts = np.zeros((len(own), len(labels)), dtype=np.int64)
    for site, site_labels in enumerate(own):
        for label in site_labels:
            counts[site, position.get(label, len(labels) - 1)] += 1
    return tuple(labels), counts


def _label(example: Example, column: str | None) -> str:
    return "rows" if column is None else example.columns.get(column, _NONE)


def _by_plugin(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Partition:
    where = f"partition.method={config.method}"
    found = entry_points(group=PARTITIONERS_GROUP, name=config.method)
    if not found:
        names = (*METHODS, *sorted(entry_points(group=PARTITIONERS_GROUP).names))
        guess = similar(config.method, names)
        fix = f"install the package that offers it as a {PARTITIONERS_GROUP} entry point"
        raise DataError(
            Problem(
                code="FT223",
                what=f"expected one of {', '.join(names)}, got {config.method!r}",
                where=where,
                fix=f"did you mean {guess}?" if guess else fix,
            )
        )
    plugin = next(iter(found))
    try:
        sites = dict(plugin.load()(examples, config, seed))
        names = tuple(str(name) for name in sites)
        indices = tuple(np.sort(_positions(rows)) for rows in sites.values())
    except DataError:
        raise
    except Exception as error:  # foreign code may raise anything
        raise DataError(
            Problem(
                code="FT223",
                what=f"the partitioner {plugin.value} failed: {type(error).__name__}: {error}",
                where=where,
                fix="report it to the author of the partitioner's package",
            )
        ) from error
    made = Partition(names=names, indices=indices)
    check_complete(made, len(examples), where=where)
    small = [
        f"{name} ({size})" for name, size in zip(names, made.sizes, strict=True) if size < config.min_examples
    ]
    if small:
        raise DataError(
            Problem(
                code="FT222",
                what=f"expected every site to have {config.min_examples} rows or more, got "
                f"{', '.join(small)}",
                where=where,
                fix="set a lower partition.min_examples",
            )
        )
    return made


def _positions(rows: Sequence[int]) -> np.ndarray:
    positions = np.asarray(rows)
    if positions.size and not np.issubdtype(positions.dtype, np.integer):
        raise TypeError(f"row positions must be integers, got {positions.dtype}")
    return positions.reshape(-1).astype(np.int64)
