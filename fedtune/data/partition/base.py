"""What a split of a dataset over sites is, and what every split keeps to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedtune.data.examples import Example
from fedtune.errors import DataError, Problem

__all__ = ["Partition", "check_complete", "client_names", "fill_up", "labels_of", "rows_by_label"]


@dataclass(frozen=True, kw_only=True)
class Partition:
    """Which rows are whose.

    Attributes:
        names: The sites, each name once.
        indices: For each site, the positions of its rows in the dataset, ascending; int64. No row is at
            two sites.
        left_out: Rows that no site holds; other than 0 only for ``natural`` with ``partition.values``.
    """

    names: tuple[str, ...]
    indices: tuple[np.ndarray, ...]
    left_out: int = 0

    @property
    def sizes(self) -> tuple[int, ...]:
        """Rows of each site."""
        return tuple(len(rows) for rows in self.indices)


def client_names(count: int) -> tuple[str, ...]:
    """Names for clients that are only numbers, equally long so that they sort: ``client-00`` and on."""
    width = len(str(max(count - 1, 0)))
    return tuple(f"client-{index:0{width}d}" for index in range(count))


def labels_of(examples: Sequence[Example], column: str | None, *, key: str) -> list[str]:
    """The label of each row.

    Args:
        examples: The rows.
        column: The column that holds the label.
        key: The configuration key that named it, for the messages.

    Raises:
        DataError: FT220, no column is named or rows lack it.
    """
    if column is None:
        what, fix = "expected a column that holds the label, got none", f"set {key}=COLUMN"
        raise DataError(Problem(code="FT220", what=what, where=key, fix=fix))
    missing = [example.id for example in examples if column not in example.columns]
    if missing:
        present = sorted({name for example in examples for name in example.columns})
        raise DataError(
            Problem(
                code="FT220",
                what=f"expected every row to have the column {column!r}, got {len(missing)} of "
                f"{len(examples)} without, such as {', '.join(missing[:3])}",
                where=f"{key}={column}",
                fix=f"name one of the columns that rows have ({', '.join(present[:12])})"
                if present
                else "rows have no columns beside their text: use partition=iid or partition=quantity",
            )
        )
    return [example.columns[column] for example in examples]


def rows_by_label(labels: Sequence[str]) -> dict[str, np.ndarray]:
    """The row positions of each label, ascending; labels in the order of their first row."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return {label: np.array(own, dtype=np.int64) for label, own in rows.items()}


def fill_up(assignment: list[np.ndarray], minimum: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Move rows, drawn at random from whoever has most, until every client has ``minimum`` of them.

    Args:
        assignment: For each client, its row positions.
        minimum: Rows that each must have.
        rng: Chooses which rows move.

    Returns:
        The assignment with no row lost and none twice.

    Raises:
        DataError: FT222, there are fewer rows than clients times ``minimum``.
    """
    total = sum(map(len, assignment))
    if total < minimum * len(assignment):
        raise DataError(
            Problem(
                code="FT222",
                what=f"expected at least {minimum * len(assignment)} rows for {len(assignment)} clients of "
                f"{minimum} or more, got {total}",
                where="partition.min_examples",
                fix=f"set partition.min_examples={total // len(assignment)} or less, or partition.clients="
                f"{max(1, total // max(1, minimum))} or less",
            )
        )
    rows = [list(rng.permutation(part)) for part in assignment]
    sizes = np.array([len(part) for part in rows])
    for client in np.flatnonzero(sizes < minimum):
        while sizes[client] < minimum:
            donor = int(np.argmax(sizes))
            rows[client].append(rows[donor].pop())
            sizes[donor] -= 1
            sizes[client] += 1
    return [np.asarray(part, dtype=np.int64) for part in rows]


def check_complete(partition: Partition, n_rows: int, *, where: str) -> None:
    """Refuse a split that a plug-in made and that loses, repeats or invents rows.

    Raises:
        DataError: FT223, with everything that is wrong.
    """
    taken = np.concatenate([np.zeros(0, dtype=np.int64), *partition.indices])
    inside = taken[(taken >= 0) & (taken < n_rows)]
    counts = np.bincount(inside, minlength=n_rows)
    wrong = {
        "rows that do not exist": len(taken) - len(inside),
        "rows at two sites or twice at one": int(np.count_nonzero(counts > 1)),
        "rows at no site": int(np.count_nonzero(counts == 0)),
        "names given to two sites": len(partition.names) - len(set(partition.names)),
    }
    problems = [
        Problem(
            code="FT223",
            what=f"expected a split in which each of the {n_rows} rows is at one site, got {number} {what}",
            where=where,
            fix="report it to the author of the partitioner's package",
        )
        for what, number in wrong.items()
        if number
    ]
    if problems:
        raise DataError(problems)
