"""The stated guarantees of block quantization, against a reading of its formula one value at a time."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterable
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from support.quantization import quantized

from fedtune.config.derived import update_bytes
from fedtune.updates.quantize import BlockQuantizer

KINDS = ("int8", "int4")
LEVELS = {"int8": 127, "int4": 7}
TINY, GREATEST = np.finfo(np.float32).tiny, np.finfo(np.float32).max
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = stnp.arrays(np.float32, st.integers(1, 100), elements=finite)
kinds = st.sampled_from(KINDS)


def of(kind: str, values: Any, block: Any = 16, **arrays: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    quantizer = BlockQuantizer(updates=quantized(kind, block_size=block))
    code_bytes, scale_count = quantizer.sizes(len(values))
    codes = np.full(code_bytes, 77, dtype=quantizer.code_dtype)
    scales = np.full(scale_count, 77, dtype=np.float32)
    finite = quantizer.quantize(np.asarray(values, np.float32), codes=codes, scales=scales, **arrays)
    return codes, scales, finite


def read(kind: str, codes: np.ndarray, scales: np.ndarray, count: int, block: Any = 16) -> np.ndarray:
    values = np.full(count, np.nan, dtype=np.float32)
    BlockQuantizer(updates=quantized(kind, block_size=block)).dequantize(codes, scales, values)
    return values


def integers_one_by_one(kind: str, codes: np.ndarray, count: int) -> list[int]:
    """An independent reading of the bytes, from the format's description."""
    if kind == "int8":
        return [byte - 256 if byte > 127 else byte for byte in codes.tobytes()]
    return [((codes.tobytes()[i // 2] >> 4 * (i % 2)) & 15) - 8 for i in range(count)]


@given(vectors, kinds, st.sampled_from([16, 32]))
@example(np.array([GREATEST, -GREATEST, 1], np.float32), "int8", 16)
@example(np.array([GREATEST, -GREATEST, 1], np.float32), "int4", 16)
@example(np.array([1e-45, -1e-45, 3e-39], np.float32), "int8", 16)
@settings(deadline=None, max_examples=500)
def test_every_value_is_read_within_half_a_step_of_its_block(values: Any, kind: str, block: int) -> None:
    codes, scales, ok = of(kind, values, block)
    assert ok
    got = read(kind, codes, scales, len(values), block)
    assert np.isfinite(got).all()
    for i, (value, reading) in enumerate(zip(values.tolist(), got.tolist(), strict=True)):
        start = i // block * block
        greatest = max(abs(Fraction(x)) for x in values[start : start + block].tolist())
        bound = greatest / (2 * LEVELS[kind]) + greatest / 2**22
        if greatest < LEVELS[kind] * Fraction(float(TINY)):
            bound = Fraction(1, 2**127)
        assert abs(Fraction(value) - Fraction(reading)) <= bound


@given(vectors, kinds)
@settings(deadline=None, max_examples=300)
def test_bytes_hold_the_nearest_integers_and_readings_are_integer_times_scale(values: Any, kind: str) -> None:
    codes, scales, _ = of(kind, values)
    integers = integers_one_by_one(kind, codes, len(values))
    got = read(kind, codes, scales, len(values))
    for i, integer in enumerate(integers):
        scale = scales[i // 16]
        assert abs(integer) <= LEVELS[kind]
        assert got[i] == np.float32(integer) * scale
        if scale > 0:
            assert integer == round(float(np.float32(values[i]) / scale)), "half to even, as Python rounds"


@given(vectors, kinds)
@example(np.zeros(1, np.float32), "int8")
@example(np.array([-0.0, 0.0, -0.0], np.float32), "int4")
@settings(deadline=None, max_examples=300)
def test_scales_are_zero_for_zeros_alone_and_else_normal_numbers(values: Any, kind: str) -> None:
    _, scales, _ = of(kind, values)
    for number, scale in enumerate(scales):
        block = values[16 * number : 16 * (number + 1)]
        if not block.any():
            assert scale.tobytes() == np.float32(0).tobytes()
            continue
        assert scale >= TINY
        assert np.isfinite(scale * np.float32(LEVELS[kind]))
        greatest = float(np.abs(block).max())
        if greatest >= LEVELS[kind] * float(TINY):
            assert float(scale) == pytest.approx(greatest / LEVELS[kind], rel=2**-23)


@given(vectors, kinds)
@settings(deadline=None, max_examples=200)
def test_what_an_encoder_makes_is_never_refused(values: Any, kind: str) -> None:
    codes, scales, _ = of(kind, values)
    quantizer = BlockQuantizer(updates=quantized(kind))
    assert quantizer.problem_of_scales(scales) is None
    assert quantizer.problem_of_codes(codes, len(values)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_are_read_as_zeros_beside_any_neighbour(kind: str) -> None:
    values = np.array([0.0, -0.0, 5.0, 0.0] + [0.0] * 20, np.float32)
    got = read(kind, *of(kind, values)[:2], len(values))
    assert np.flatnonzero(got).tolist() == [2]
    assert got[2] == pytest.approx(5.0, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_integers_times_a_power_of_two_are_read_exactly(kind: str) -> None:
    levels = LEVELS[kind]
    values = np.float32(2.0**-13) * np.arange(-levels, levels + 1, dtype=np.float32)
    values = np.concatenate([values, values[:1]])  # blocks of 256 and 16: each holds the largest
    assert np.array_equal(read(kind, *of(kind, values, 256)[:2], len(values), 256), values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_noticed_wherever_it_stands(kind: str, bad: float) -> None:
    for place in (0, 17, 99):
        values = np.ones(100, np.float32)
        values[place] = bad
        assert not of(kind, values)[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sum_that_overflows_is_noticed(kind: str) -> None:
    values = np.full(20, GREATEST, np.float32)
    assert not of(kind, values, carried=values)[2]


@given(kinds, st.lists(st.integers(1, 5000), min_size=1, max_size=5), st.sampled_from([16, 64, 1024]))
@settings(deadline=None, max_examples=60)
def test_bytes_are_those_of_the_formula(kind: str, sizes: list[int], block: int) -> None:
    from fedtune.config.compose import compose

    config = compose([f"updates={kind}", f"updates.block_size={block}"])
    formula = sum(
        (n if kind == "int8" else ceil(Fraction(n, 2))) + 4 * ceil(Fraction(n, block)) for n in sizes
    )
    made = [of(kind, np.ones(n), block)[:2] for n in sizes]
    assert sum(codes.nbytes + scales.nbytes for codes, scales in made) == formula
    assert update_bytes(config, sizes, itemsize=4) == formula


@given(stnp.arrays(np.float32, st.integers(1, 70), elements=st.floats(-(2.0**90), 2.0**90, width=32)), kinds)
@settings(deadline=None, max_examples=200)
def test_the_residual_is_what_the_reading_leaves_out(values: Any, kind: str) -> None:
    residual = np.full(len(values), np.nan, np.float32)
    codes, scales, _ = of(kind, values, residual=residual)
    got = read(kind, codes, scales, len(values))
    left = values.astype(np.float64) - got.astype(np.float64)
    # Sterbenz: float32's subtraction is exact here, but for a rounding next to half a step.
    np.testing.assert_allclose(residual, left, rtol=2**-24, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [2**16 - 1, 2**16, 2**16 + 1, 3 * 2**16 + 37])
def test_a_long_tensor_is_quantized_as_its_blocks_are_alone(kind: str, count: int) -> None:
    values = np.random.default_rng(3).normal(size=count).astype(np.float32)
    carried = np.random.default_rng(4).normal(size=count).astype(np.float32)
    residual = np.empty_like(values)
    codes, scales, _ = of(kind, values, 64, carried=carried, residual=residual)
    whole = read(kind, codes, scales, count, 64)
    for start in (0, 2**16 - 64, 2**16, (count - 1) // 64 * 64):
        part = slice(start, min(start + 64, count))
        if part.start >= count:
            continue
        alone = of(kind, values[part] + carried[part], 64)
        assert np.array_equal(read(kind, *alone[:2], part.stop - part.start, 64), whole[part])
    assert np.array_equal(residual, values + carried - whole)


@pytest.mark.parametrize("kind", KINDS)
def test_memory_beside_the_results_does_not_grow_with_the_tensor(kind: str) -> None:
    def peak(count: int) -> int:
        values = np.ones(count, np.float32)
        codes, scales, _ = of(kind, values[:64], 64)
        quantizer = BlockQuantizer(updates=quantized(kind, block_size=64))
        code_bytes, scale_count = quantizer.sizes(count)
        codes = np.empty(code_bytes, dtype=quantizer.code_dtype)
        scales = np.empty(scale_count, dtype=np.float32)
        residual = np.empty_like(values)
        tracemalloc.start()
        try:
            quantizer.quantize(values, codes=codes, scales=scales, carried=values, residual=residual)
            quantizer.dequantize(codes, scales, residual)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(2**21) < 1.1 * peak(2**17) < 2**20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("values", np.zeros(20)),
        ("values", np.zeros((4, 5), np.float32)),
        ("codes", np.zeros(3, np.int8)),
        ("codes", np.zeros(20, np.float32)),
        ("scales", np.zeros(3, np.float32)),
        ("scales", np.zeros(2)),
        ("carried", np.zeros(1, np.float32)),
        ("residual", np.zeros(20, np.float16)),
    ],
)
def test_arrays_of_another_shape_or_type_are_refused(kind: str, name: str, wrong: np.ndarray) -> None:
    quantizer = BlockQuantizer(updates=quantized(kind))
    code_bytes, scale_count = quantizer.sizes(20)
    right = {
        "values": np.zeros(20, np.float32),
        "codes": np.zeros(code_bytes, quantizer.code_dtype),
        "scales": np.zeros(scale_count, np.float32),
    }
    arrays = {**right, name: wrong}
    with pytest.raises(ValueError, match=f"{name} must be"):
        quantizer.quantize(arrays.pop("values"), **arrays)


def test_the_bytes_are_the_same_on_every_machine() -> None:
    values = ((np.arange(1000) * 7919 % 1009 - 504) / 4096).astype(np.float32)

    def digest(arrays: Iterable[np.ndarray]) -> str:
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]

    assert {kind: digest(of(kind, values, 64)[:2]) for kind in KINDS} == {
        "int8": "9fbc729c5e2f28b3",
        "int4": "01d8ab5bd84e75e4",
    }


@pytest.mark.parametrize(("kind", "block", "expected"), [("int8", 64, 0.0059), ("int4", 64, 0.108)])
@pytest.mark.parametrize("spread", [1e-2, 1e-5])
def test_the_error_on_normal_values_is_the_one_documented(
    kind: str, block: int, expected: float, spread: float
) -> None:
    values = (spread * np.random.default_rng(0).normal(size=2**18)).astype(np.float32)
    left = values - read(kind, *of(kind, values, block)[:2], len(values), block)
    assert np.linalg.norm(left) / np.linalg.norm(values) == pytest.approx(expected, rel=0.02)
