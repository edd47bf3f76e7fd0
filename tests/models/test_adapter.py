from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.models.adapter import AdapterSpec, initial_adapter


def spec(*layers: str, rank: int = 4, into: int = 10, out: int = 6, dtype: str = "float32") -> AdapterSpec:
    shapes = {}
    for layer in layers:
        shapes[f"{layer}.lora_B.weight"] = (out, rank)
        shapes[f"{layer}.lora_A.weight"] = (rank, into)
    return AdapterSpec(shapes=shapes, scaling=2.0, dtype=dtype)


def test_names_come_sorted_whatever_order_they_were_given_in() -> None:
    forwards, backwards = spec("a", "b"), spec("b", "a")
    assert list(forwards.shapes) == sorted(forwards.shapes)
    assert forwards == backwards
    assert list(forwards.shapes) == list(backwards.shapes)


def test_names_and_sizes_follow_the_factors() -> None:
    both = spec("a", "b")
    assert both.names(("A",)) == ("a.lora_A.weight", "b.lora_A.weight")
    assert both.names(("B",)) == ("a.lora_B.weight", "b.lora_B.weight")
    assert both.names(()) == ()
    assert both.nbytes(("A",)) == 2 * 4 * 10 * 4
    assert both.nbytes() == 2 * 4 * (10 + 6) * 4
    assert both.parameters() == 2 * 4 * (10 + 6)
    assert spec("a", dtype="float64").nbytes() == 4 * (10 + 6) * 8


def test_pairs_hold_each_layer_once() -> None:
    assert spec("b", "a").pairs == (
        ("a.lora_A.weight", "a.lora_B.weight"),
        ("b.lora_A.weight", "b.lora_B.weight"),
    )


def test_shapes_cannot_be_changed_and_a_spec_survives_pickling() -> None:
    one = spec("a")
    with pytest.raises(TypeError):
        one.shapes["a.lora_A.weight"] = (1, 1)  # type: ignore[index]
    assert pickle.loads(pickle.dumps(one)) == one


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"a.lora_A.weight": (4, 10)}, "has no partner a.lora_B.weight"),
        ({"a.weight": (4, 10)}, "neither"),
        ({"a.lora_A.weight": (4, 10), "a.lora_B.weight": (6, 5)}, "differ in rank"),
        ({"a.lora_A.weight": (4, 10, 1), "a.lora_B.weight": (6, 4)}, "is a matrix"),
    ],
)
def test_a_spec_that_is_no_adapter_is_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterSpec(shapes=shapes, scaling=1.0, dtype="float32")


@given(seed=st.integers(0, 2**63 - 1), into=st.integers(1, 300), rank=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_the_start_adds_nothing_and_stays_within_its_bound(seed: int, into: int, rank: int) -> None:
    one = spec("a", "b", rank=rank, into=into)
    start = initial_adapter(one, seed)
    assert list(start) == list(one.shapes)
    for name, value in start.items():
        assert value.shape == one.shapes[name]
        assert value.dtype == np.float32
        if one.factor(name) == "B":
            assert not value.any()
        else:
            assert np.abs(value).max() <= np.float32(1 / np.sqrt(into))
    assert not np.array_equal(start["a.lora_A.weight"], start["b.lora_A.weight"])


def test_the_start_has_the_spread_of_a_uniform_distribution() -> None:
    value = initial_adapter(spec("a", rank=64, into=1000), 3)["a.lora_A.weight"]
    assert value.mean() == pytest.approx(0.0, abs=3e-4)
    assert value.std() == pytest.approx(1 / np.sqrt(1000) / np.sqrt(3), rel=0.01)


def test_a_tensors_start_depends_on_seed_and_name_alone() -> None:
    alone, among = initial_adapter(spec("b"), 7), initial_adapter(spec("a", "b", "c"), 7)
    assert np.array_equal(alone["b.lora_A.weight"], among["b.lora_A.weight"])
    other = initial_adapter(spec("b"), 8)
    assert not np.array_equal(alone["b.lora_A.weight"], other["b.lora_A.weight"])


def test_the_start_is_the_same_on_every_machine() -> None:
    # Recorded once: a change would make new runs differ from resumed ones, and sites from their server.
    value = initial_adapter(spec("a", rank=1, into=4), 0)["a.lora_A.weight"]
    assert value.tolist() == [
        [0.11827563494443893, 0.21279607713222504, -0.3980061709880829, -0.12320656329393387]
    ]


def test_a_float64_spec_starts_in_float64() -> None:
    exact = initial_adapter(spec("a", dtype="float64"), 0)["a.lora_A.weight"]
    rounded = initial_adapter(spec("a"), 0)["a.lora_A.weight"]
    assert exact.dtype == np.float64
    assert np.array_equal(exact.astype(np.float32), rounded)
