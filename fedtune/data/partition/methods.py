"""The built-in ways to split a dataset over sites.

Each takes the rows, the configuration and the run's seed. Only ``natural`` may leave rows out, and only when
``partition.values`` asks for some sites and not for others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from fedtune.config.keys import similar
from fedtune.config.schema import PartitionConfig
from fedtune.data.examples import Example
from fedtune.data.partition.base import Partition, client_names, fill_up, labels_of, rows_by_label
from fedtune.data.seeds import derive_seed
from fedtune.errors import DataError, Problem

__all__ = ["dirichlet", "iid", "natural", "quantity", "shards"]

_LARGEST_ALPHA = 1e9  # shares are equal long before; numpy's draw overflows near 1e308


def natural(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Partition:
    """One site for each value of ``partition.column``; no row moves between sites.

    With ``partition.values`` these sites in this order, and rows with other values are left out, as asked.
    Without, all sites, largest first, equal ones by name.

    Args:
        examples: The rows.
        config: ``column``, ``values`` and ``min_examples``.
        seed: Not used: nothing is drawn.

    Raises:
        DataError: FT220, rows lack the column; FT221, a value that no row has; FT222, sites with fewer rows
            than ``min_examples``.
    """
    rows = rows_by_label(labels_of(examples, config.column, key="partition.column"))
    names = config.values or tuple(sorted(rows, key=lambda name: (-len(rows[name]), name)))
    problems = [_unknown_value(name, config, rows) for name in names if name not in rows]
    problems += [_repeated_value(name) for name, times in Counter(names).items() if times > 1]
    problems += [
        _small_site(name, len(rows[name]), config)
        for name in names
        if name in rows and len(rows[name]) < config.min_examples
    ]
    if problems:
        raise DataError(problems)
    indices = tuple(rows[name] for name in names)
    return Partition(names=names, indices=indices, left_out=len(examples) - sum(map(len, indices)))


def _small_site(name: str, size: int, config: PartitionConfig) -> Problem:
    return Problem(
        code="FT222",
        what=f"expected every site to have {config.min_examples} rows or more, got {size} at {name!r}",
        where=f"partition.column={config.column}",
        fix=f"leave the site out of partition.values, or set partition.min_examples={size} or less",
    )


def _repeated_value(name: str) -> Problem:
    return Problem(
        code="FT221",
        what=f"expected each site once, got {name!r} more than once",
        where="partition.values",
        fix="name it once",
    )


def _unknown_value(name: str, config: PartitionConfig, known_values: Iterable[str]) -> Problem:
    guess = similar(name, known_values)
    known = ", ".join(sorted(known_values)[:20])
    return Problem(
        code="FT221",
        what=f"expected a value of the column {config.column!r}, got {name!r}, which no row has",
        where="partition.values",
        fix=f"did you mean {guess}?" if guess else f"choose from {known}",
    )


def iid(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Partition:
    """Rows at random in ``partition.clients`` parts whose sizes differ by one at most.

    Raises:
        DataError: FT222, too few rows for ``min_examples``.
    """
    rng = _rng(seed, "iid")
    parts = np.array_split(rng.permutation(len(examples)), _clients(config))
    return _finish(list(parts), config, rng)


def quantity(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Partition:
    """Rows at random in parts of unequal size: client k gets a share proportional to (k + 1) ** -exponent.

    Exponent 0 gives equal parts, 1 is Zipf's law. Fractions of a row go to those with the largest ones.

    Raises:
        DataError: FT222, too few rows for ``min_examples``.
    """
    rng = _rng(seed, "quantity")
    shares = np.arange(1, _clients(config) + 1, dtype=np.float64) ** -config.exponent
    sizes = _whole_numbers(shares, len(examples))
    parts = np.split(rng.permutation(len(examples)), np.cumsum(sizes)[:-1])
    return _finish(parts, config, rng)


def dirichlet(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Partition:
    """For each label, shares of its rows drawn from a Dirichlet distribution over the clients.

    p_label ~ Dirichlet(alpha, ..., alpha); client j gets the share p_label[j] of that label's rows: the split
    of Yurochkin et al., "Bayesian Nonparametric Federated Learning of Neural Networks", ICML 2019, section 4,
    the per-label form of the one of Hsu, Qi and Brown, "Measuring the Effects of Non-Identical Data
    Distribution for Federated Visual Classification", 2019, section 3. Small alpha is heterogeneous: at 0.1
    most rows of a label are at one or two clients, at 100 all clients have about the same mix.

    Each label has its own seed, so another label's rows do not change how this one's are shared out.

    Raises:
        DataError: FT220, rows lack the column; FT222, too few rows for ``min_examples``.
    """
    clients = _clients(config)
    rows = rows_by_label(labels_of(examples, config.column, key="partition.column"))
    parts: list[list[np.ndarray]] = [[np.zeros(0, dtype=np.int64)] for _ in range(clients)]
    for label in sorted(rows):
        rng = _rng(seed, "dirichlet", label)
        shares = rng.dirichlet(np.full(clients, min(config.alpha, _LARGEST_ALPHA)))
        borders = np.cumsum(_whole_numbers(shares, len(rows[label])))[:-1]
        for part, own in zip(parts, np.split(rng.permutation(rows[label]), borders), strict=True):
            part.append(own)
    return _finish([np.concatenate(part) for part in parts], config, _rng(seed, "dirichlet"))


def shards(examples: Sequence[Example], config: PartitionConfig, seed: int) -> Partition:
    """Rows sorted by label, cut into equal shards, ``partition.shards_per_client`` at random to each client.

    The pathological split of McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017, section 3: with two shards most clients have rows of two labels only.

    Raises:
        DataError: FT220, rows lack the column; FT222, fewer rows than shards, or too few for
            ``min_examples``.
    """
    clients = _clients(config)
    labels = labels_of(examples, config.column, key="partition.column")
    count = clients * config.shards_per_client
    if len(labels) < count:
        raise DataError(
            Problem(
                code="FT222",
                what=f"expected at least one row for each of {clients} x {config.shards_per_client} shards, "
                f"got {len(labels)} rows",
                where="partition.shards_per_client",
                fix="set fewer partition.clients or fewer partition.shards_per_client",
            )
        )
    rng = _rng(seed, "shards")
    pieces = np.array_split(
        np.array(sorted(range(len(labels)), key=labels.__getitem__), dtype=np.int64), count
    )
    order = rng.permutation(count).reshape(clients, config.shards_per_client)
    return _finish([np.concatenate([pieces[shard] for shard in own]) for own in order], config, rng)


def _rng(seed: int, *purpose: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(derive_seed(seed, "partition", *purpose)))


def _clients(config: PartitionConfig) -> int:
    if config.clients is None:
        raise DataError(
            Problem(
                code="FT222",
                what=f"expected a number of clients for partition.method={config.method}, got null",
                where="partition.clients",
                fix="set partition.clients=6, or any number",
            )
        )
    return config.clients


def _whole_numbers(shares: np.ndarray, total: int) -> np.ndarray:
    """Split ``total`` in proportion to ``shares`` into whole numbers, by largest remainders."""
    exact = shares / shares.sum() * total
    numbers: np.ndarray = np.floor(exact).astype(np.int64)
    missing = total - int(numbers.sum())
    order = np.argsort(numbers - exact, kind="stable")
    numbers[order[:missing]] += 1
    return numbers


def _finish(parts: list[np.ndarray], config: PartitionConfig, rng: np.random.Generator) -> Partition:
    filled = fill_up(parts, config.min_examples, rng)
    return Partition(names=client_names(len(filled)), indices=tuple(np.sort(part) for part in filled))
