from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import labelled, partition_config, question

from fedtune.data.partition import Partition, label_counts, partition
from fedtune.data.partition.base import client_names
from fedtune.errors import DataError

METHODS = ("natural", "iid", "dirichlet", "quantity", "shards")
RANDOM = ("iid", "dirichlet", "quantity", "shards")
LABELS = st.lists(st.sampled_from("abcdé"), min_size=1, max_size=60)


def sites_of(split: Partition, n_rows: int) -> list[list[str]]:
    """For each row, the sites that hold it: the long way round, row by row."""
    return [
        [name for name, rows in zip(split.names, split.indices, strict=True) if row in rows.tolist()]
        for row in range(n_rows)
    ]


@settings(max_examples=400, deadline=None)
@given(
    labels=LABELS,
    method=st.sampled_from(METHODS),
    clients=st.integers(min_value=1, max_value=8),
    alpha=st.floats(min_value=1e-300, allow_infinity=False)
    | st.sampled_from([1e-8, 0.1, 1.0, 100.0, 1.7e308]),
    exponent=st.floats(min_value=0, allow_infinity=False) | st.floats(min_value=0, max_value=4),
    shards_per_client=st.integers(min_value=1, max_value=4),
    min_examples=st.integers(min_value=0, max_value=6),
    seed=st.integers(min_value=0, max_value=2**40),
)
def test_no_partition_ever_loses_or_duplicates_a_row(
    labels: list[str],
    method: str,
    clients: int,
    alpha: float,
    exponent: float,
    shards_per_client: int,
    min_examples: int,
    seed: int,
) -> None:
    config = partition_config(
        method,
        clients=None if method == "natural" else clients,
        alpha=alpha,
        exponent=exponent,
        shards_per_client=shards_per_client,
        min_examples=min_examples,
    )
    smallest = min(map(labels.count, labels)) if method == "natural" else len(labels) // clients
    impossible = smallest < min_examples or (method == "shards" and len(labels) < clients * shards_per_client)
    if impossible:
        with pytest.raises(DataError, match="FT222"):
            partition(labelled(labels), config, seed)
        return
    split = partition(labelled(labels), config, seed)
    assert [len(sites) for sites in sites_of(split, len(labels))] == [1] * len(labels)
    assert sum(split.sizes) == len(labels)
    assert split.left_out == 0
    assert min(split.sizes) >= min_examples
    assert (
        len(set(split.names)) == len(split.indices) == (len(set(labels)) if method == "natural" else clients)
    )
    assert all(rows.dtype == np.int64 and rows.tolist() == sorted(rows.tolist()) for rows in split.indices)


@given(labels=LABELS, values=st.lists(st.sampled_from("abcdé"), min_size=1, max_size=5, unique=True))
def test_natural_with_values_takes_only_the_rows_of_these_values(
    labels: list[str], values: list[str]
) -> None:
    config = partition_config("natural", clients=None, values=tuple(values))
    if not set(values) <= set(labels):
        with pytest.raises(DataError, match="FT221"):
            partition(labelled(labels), config, 0)
        return
    split = partition(labelled(labels), config, 0)
    assert split.names == tuple(values)
    expected = [[label] if label in values else [] for label in labels]
    assert sites_of(split, len(labels)) == expected
    assert split.left_out == expected.count([])


def test_natural_without_values_takes_all_largest_first_then_by_name() -> None:
    split = partition(labelled("bacacb" + "c"), partition_config("natural", clients=None), 0)
    assert split.names == ("c", "a", "b")
    assert split.sizes == (3, 2, 2)


def test_all_wrong_values_of_natural_are_reported_at_once() -> None:
    config = partition_config(
        "natural", clients=None, values=("nort", "x", "north", "x", "south"), min_examples=2
    )
    with pytest.raises(DataError) as caught:
        partition(labelled(["north", "south", "south"]), config, 0)
    assert [(problem.code, problem.fix) for problem in caught.value.problems] == [
        ("FT221", "did you mean north?"),
        ("FT221", "choose from north, south"),
        ("FT221", "choose from north, south"),
        ("FT221", "name it once"),
        ("FT222", "leave the site out of partition.values, or set partition.min_examples=1 or less"),
    ]


@pytest.mark.parametrize("method", ["natural", "dirichlet", "shards"])
def test_rows_without_the_label_are_counted_and_the_columns_there_are_named(method: str) -> None:
    rows = [question("q", "a", id="first", ward="1"), question("q", "a", id="second", site="x", ward="1")]
    with pytest.raises(DataError, match=r"got 1 of 2 without, such as first") as caught:
        partition(rows, partition_config(method), 0)
    assert caught.value.problems[0].code == "FT220"
    assert "name one of the columns that rows have (site, ward)" in caught.value.problems[0].fix
    with pytest.raises(DataError, match="FT220: expected a column"):
        partition(rows, partition_config(method, column=None), 0)


@pytest.mark.parametrize("method", RANDOM)
def test_a_seed_decides_a_random_partition(method: str) -> None:
    rows = labelled("abcde" * 40)
    config = partition_config(method)
    first, again, other = (partition(rows, config, seed) for seed in (1, 1, 2))
    assert [part.tolist() for part in first.indices] == [part.tolist() for part in again.indices]
    assert [part.tolist() for part in first.indices] != [part.tolist() for part in other.indices]


@pytest.mark.parametrize("method", RANDOM)
def test_random_methods_need_a_number_of_clients(method: str) -> None:
    with pytest.raises(DataError, match=r"FT222: expected a number of clients"):
        partition(labelled("ab"), partition_config(method, clients=None), 0)


def test_too_few_rows_for_everyone_say_what_would_do() -> None:
    with pytest.raises(
        DataError, match=r"expected at least 15 rows for 3 clients of 5 or more, got 11"
    ) as caught:
        partition(labelled("a" * 11), partition_config("iid", min_examples=5), 0)
    assert (
        caught.value.problems[0].fix == "set partition.min_examples=3 or less, or partition.clients=2 or less"
    )


def test_iid_parts_differ_by_one_row_at_most_and_mix_the_order() -> None:
    split = partition(labelled("a" * 100), partition_config("iid"), 0)
    assert sorted(split.sizes) == [33, 33, 34]
    assert split.indices[0].tolist() != list(range(34))


def test_quantity_follows_the_power_law() -> None:
    config = partition_config("quantity", clients=4, exponent=2.0)
    # 1, 1/4, 1/9, 1/16 of 1000 rows, scaled to sum to 1: 702.44, 175.61, 78.05, 43.90
    assert partition(labelled("a" * 1000), config, 0).sizes == (702, 176, 78, 44)
    equal = partition_config("quantity", clients=4, exponent=0.0)
    assert partition(labelled("a" * 1000), equal, 0).sizes == (250, 250, 250, 250)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_dirichlet_shares_have_the_mean_and_variance_of_the_distribution(alpha: float) -> None:
    clients, labels, each = 5, 200, 60
    rows = labelled(f"label-{row % labels:03}" for row in range(labels * each))
    config = partition_config("dirichlet", clients=clients, alpha=alpha)
    split = partition(rows, config, 3)
    _, counts = label_counts(rows, split, config, max_labels=labels)
    shares = counts / each
    # Dirichlet(alpha, ..., alpha) over J: mean 1/J, variance (1/J)(1 - 1/J) / (J alpha + 1)
    variance = (1 / clients) * (1 - 1 / clients) / (clients * alpha + 1)
    assert shares.mean(axis=1) == pytest.approx(1 / clients, abs=4 * np.sqrt(variance / labels))
    assert shares.var() == pytest.approx(variance, rel=0.15)


def test_another_label_does_not_change_how_dirichlet_shares_out_this_one() -> None:
    config = partition_config("dirichlet")
    alone = partition(labelled("a" * 50), config, 0)
    beside = partition(labelled("a" * 50 + "b" * 50), config, 0)
    assert [part.tolist() for part in alone.indices] == [part[part < 50].tolist() for part in beside.indices]


def test_clients_of_shards_have_few_labels() -> None:
    rows = labelled("abcdefghij" * 20)
    config = partition_config("shards", clients=10, shards_per_client=2)
    split = partition(rows, config, 0)
    assert split.sizes == (20,) * 10
    _, counts = label_counts(rows, split, config)
    # 20 shards of 10 rows, 20 rows a label: every shard lies in one label
    assert (np.count_nonzero(counts, axis=1) <= 2).all()
    assert (counts % 10 == 0).all()


def test_a_minimum_moves_only_the_rows_that_are_missing() -> None:
    rows = labelled("a" * 100)
    steep = partition_config("quantity", exponent=5.0)
    raised = partition_config("quantity", exponent=5.0, min_examples=10)
    assert partition(rows, steep, 0).sizes == (97, 3, 0)
    assert partition(rows, raised, 0).sizes == (80, 10, 10)


def test_clients_may_end_up_without_rows_when_no_minimum_is_asked() -> None:
    assert sorted(partition(labelled("ab"), partition_config("iid", clients=4), 0).sizes) == [0, 0, 1, 1]


def test_client_names_sort_as_their_numbers() -> None:
    assert client_names(3) == ("client-0", "client-1", "client-2")
    names = client_names(101)
    assert list(names) == sorted(names)
    assert names[7] == "client-007"


def test_label_counts_are_rows_by_site_and_label_commonest_first() -> None:
    rows = labelled("bbbaac")
    split = Partition(names=("x", "y"), indices=(np.array([0, 1, 3]), np.array([2, 4, 5])))
    labels, counts = label_counts(rows, split, partition_config("dirichlet"))
    assert labels == ("b", "a", "c")
    assert counts.tolist() == [[2, 1, 0], [1, 1, 1]]
    labels, counts = label_counts(rows, split, partition_config("dirichlet"), max_labels=2)
    assert labels == ("b", "other")
    assert counts.tolist() == [[2, 1], [1, 2]]
    labels, counts = label_counts(rows, split, partition_config("iid", column=None))
    assert labels == ("rows",)
    assert counts.tolist() == [[3], [3]]
    labels, _ = label_counts(rows, split, partition_config("iid", column="ward"))
    assert labels == ("(none)",)
