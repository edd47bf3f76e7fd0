"""Error feedback: nothing that rounding leaves out is lost, and coarse updates still reach the optimum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_delta, small_spec
from support.quantization import quantized

from fedtune.errors import UpdateError
from fedtune.models.adapter import FACTORS, Adapter, AdapterSpec
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays
from fedtune.updates.decode import decode
from fedtune.updates.encode import encode
from fedtune.updates.protect import protect

SPEC = small_spec()
KINDS = ("int8", "int4")


def sent(delta: Delta, updates: Any, carried: Adapter, spec: AdapterSpec = SPEC) -> tuple[Delta, Adapter]:
    """What the server reads, and what the site keeps."""
    encoded, residual = encode(protect(delta), updates, carried)
    return decode(to_arrays(encoded), spec, FACTORS, updates), residual


@given(
    st.sampled_from(KINDS),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=8),
    st.sampled_from([1e-6, 1.0, 1e6]),
)
@settings(deadline=None, max_examples=60)
def test_the_sums_of_deltas_and_of_what_was_sent_differ_by_the_last_residual(
    kind: str, seeds: list[int], scale: float
) -> None:
    updates, carried = quantized(kind, error_feedback=True), dict[str, np.ndarray]()
    deltas, read = [], []
    for seed in seeds:
        deltas.append(random_delta(SPEC, seed, scale=scale))
        got, carried = sent(deltas[-1], updates, carried)
        read.append(got)
    for name in SPEC.shapes:
        true = sum(delta.tensors[name].astype(np.float64) for delta in deltas)
        arrived = sum(delta.tensors[name].astype(np.float64) for delta in read)
        # One float32 addition a round, of values that are at most twice the largest delta.
        largest = max(float(np.abs(delta.tensors[name]).max()) for delta in deltas)
        allowed = len(seeds) * 2 * largest * 2**-24
        np.testing.assert_allclose(true - arrived, carried[name], rtol=0, atol=allowed)


@pytest.mark.parametrize("kind", KINDS)
def test_on_a_grid_of_powers_of_two_they_differ_by_it_exactly(kind: str) -> None:
    updates, carried = quantized(kind, error_feedback=True), dict[str, np.ndarray]()
    levels = 127 if kind == "int8" else 7
    stream = np.random.default_rng(0)
    total: dict[str, Any] = dict.fromkeys(SPEC.shapes, 0)
    for _ in range(30):
        tensors = {
            name: stream.integers(-3, 4, size=shape).astype(np.float32) / 8
            for name, shape in SPEC.shapes.items()
        }
        for tensor in tensors.values():
            tensor.flat[0] = levels  # with the residual of 0 there, the scale is 1
        got, carried = sent(Delta(tensors=tensors), updates, carried)
        for name, tensor in tensors.items():
            total[name] = total[name] + tensor - got.tensors[name]
            assert np.array_equal(total[name], carried[name])
    assert any(residual.any() for residual in carried.values())


def test_what_a_round_does_not_train_keeps_its_residual_out_of_it() -> None:
    updates = quantized("int4", error_feedback=True)
    _, carried = encode(protect(random_delta(SPEC, 1)), updates)
    only_b = random_delta(SPEC, 2, factors=("B",))
    encoded, residual = encode(protect(only_b), updates, carried)
    assert set(residual) == set(SPEC.names(("B",)))
    assert set(decode(to_arrays(encoded), SPEC, ("B",), updates).tensors) == set(SPEC.names(("B",)))


def test_without_feedback_a_residual_is_neither_used_nor_made() -> None:
    updates = quantized("int4")
    delta = protect(random_delta(SPEC, 1))
    (plain, none), (given_one, nothing) = encode(delta, updates), encode(delta, updates, {"x": np.ones(1)})
    assert none == nothing == {}
    for name, array in plain.tensors.items():
        assert np.array_equal(array, given_one.tensors[name])


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (np.zeros((7, 2), np.float32), "FT502"),
        (np.zeros((2, 7)), "FT503"),
        (np.full((2, 7), np.nan, np.float32), "FT504"),
    ],
)
def test_a_residual_that_does_not_fit_is_refused_with_its_tensor(wrong: np.ndarray, code: str) -> None:
    name = SPEC.names(("A",))[0]
    with pytest.raises(UpdateError) as caught:
        encode(protect(random_delta(SPEC, 1)), quantized(error_feedback=True), {name: wrong})
    [problem] = caught.value.problems
    assert problem.code == code
    assert problem.where == f"the residual of this site's rounds before, tensor {name!r}"


def test_update_and_residual_that_overflow_together_are_refused() -> None:
    greatest = np.finfo(np.float32).max
    tensors = {name: np.full(shape, greatest, np.float32) for name, shape in SPEC.shapes.items()}
    with pytest.raises(UpdateError, match="FT504: the update and the residual") as caught:
        encode(protect(Delta(tensors=tensors)), quantized(error_feedback=True), tensors)
    assert len(caught.value.problems) == len(SPEC.shapes)


def distance_after(rounds: int, *, updates: Any) -> float:
    """Two sites on one convex problem; the largest distance of a coordinate from its optimum.

    Site i minimises |x - c_i|^2 / 2. In coordinate 0 the sites pull apart with 100 and -100, in all others
    both want 1: the optimum is (0, 1, 1, …). A step is a hundredth of the gradient, and a block holds
    everything, so that its scale stays at 1 / L, and the others never move by more than 0.01.
    """
    spec = AdapterSpec(
        shapes={"q.lora_A.weight": (1, 8), "q.lora_B.weight": (1, 1)}, scaling=1.0, dtype="float32"
    )
    name = "q.lora_A.weight"
    x, carried = np.zeros((1, 8), np.float32), [dict[str, np.ndarray](), dict[str, np.ndarray]()]
    wanted = np.ones((2, 1, 8), np.float32)
    wanted[:, 0, 0] = 100, -100
    for _ in range(rounds):
        deltas = []
        for site in range(2):
            step = np.float32(0.01) * (wanted[site] - x)
            zero = np.zeros((1, 1), np.float32)
            got, carried[site] = sent(
                Delta(tensors={name: step, "q.lora_B.weight": zero}), updates, carried[site], spec
            )
            deltas.append(got.tensors[name])
        x = x + (deltas[0] + deltas[1]) / 2
    return float(np.abs(x - np.array([0] + [1] * 7)).max())


def test_four_bits_stall_without_feedback_and_converge_with_it() -> None:
    stalled = [distance_after(rounds, updates=quantized("int4")) for rounds in (10, 1000)]
    assert stalled == [1.0, 1.0], "no coordinate but the first ever moves"
    assert distance_after(1000, updates=quantized("int4", error_feedback=True)) < 0.15


def test_eight_bits_stall_later() -> None:
    assert 0.3 < distance_after(1000, updates=quantized("int8")) < 0.5
    assert distance_after(1000, updates=quantized("int8", error_feedback=True)) < 0.01
