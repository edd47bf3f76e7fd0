"""Hashes change with everything that matters and with nothing else."""

from __future__ import annotations

import numpy as np

from fedtune.secagg.hashes import adapter_hash, samples_hash

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_an_adapters_hash_depends_on_names_types_shapes_and_values_only() -> None:
    same = {"b": A.copy(), "a": np.asfortranarray(A)}
    assert adapter_hash({"a": A, "b": A}) == adapter_hash(same)
    others = [
        {"a": A},
        {"a": A, "c": A},
        {"a": A, "b": A.reshape(3, 2)},
        {"a": A, "b": A.astype(np.float64)},
        {"a": A, "b": A + np.float32(1e-6)},
    ]
    assert len({adapter_hash(item) for item in [same, *others]}) == 6


def test_the_samples_hash_is_of_a_multiset_of_rows() -> None:
    rows = [
        (np.array([1, 2], np.int32), np.array([False, True])),
        (np.array([3], np.int32), np.array([True])),
    ]
    assert samples_hash(rows) == samples_hash(rows[::-1])
    assert samples_hash(rows) != samples_hash([*rows, rows[0]])
    assert samples_hash(rows) != samples_hash(rows[:1])
    shifted = [(np.array([1, 2], np.int32), np.array([True, False])), rows[1]]
    assert samples_hash(rows) != samples_hash(shifted)
