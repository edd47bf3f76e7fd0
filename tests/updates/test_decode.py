"""The parser of quantized updates: one that an encoder can have made, or one error that says all."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from support.adapters import random_delta, small_spec
from support.quantization import EXACT, quantized

from fedtune.errors import UpdateError
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays, wire_bytes
from fedtune.updates.decode import decode
from fedtune.updates.encode import CODES, SCALES, Encoded, encode
from fedtune.updates.protect import protect

SPEC = small_spec()  # A and B of 14 and 10 values, then of 8 and 6: each has one block of 16
FIRST, *_, LAST = SPEC.names()
BOTH = ("A", "B")
KINDS = ("int8", "int4")
WHERE = "round 3, client heart"


def message(kind: str, seed: int = 0) -> ArrayRecord:
    return to_arrays(encode(protect(random_delta(SPEC, seed)), quantized(kind))[0])


def array_of(record: ArrayRecord, name: str) -> np.ndarray:
    return np.array(record[name].numpy())


def problems_of(record: ArrayRecord, kind: str = "int8") -> list[tuple[str, str, str]]:
    with pytest.raises(UpdateError) as caught:
        decode(record, SPEC, BOTH, quantized(kind), where=WHERE)
    return [(problem.code, problem.what, problem.where) for problem in caught.value.problems]


@pytest.mark.parametrize("factors", [("A",), ("B",), BOTH])
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantized_delta_is_read_as_float32_of_its_own(kind: str, factors: Any) -> None:
    delta = random_delta(SPEC, 1, factors=factors)
    updates = quantized(kind)
    got = decode(to_arrays(encode(protect(delta), updates)[0]), SPEC, factors, updates)
    assert list(got.tensors) == list(SPEC.names(factors))
    for name, tensor in got.tensors.items():
        bound = np.abs(delta.tensors[name]).max() * (1 / (2 * (127 if kind == "int8" else 7)) + 2**-22)
        assert np.abs(tensor - delta.tensors[name]).max() <= bound
        assert (tensor.dtype, tensor.shape) == (np.float32, SPEC.shapes[name])
        assert tensor.flags.writeable
        assert tensor.flags.c_contiguous


@pytest.mark.parametrize("kind", KINDS)
def test_memory_layout_and_order_of_names_do_not_matter(kind: str) -> None:
    delta, updates = random_delta(SPEC, 1), quantized(kind)
    odd = {name: np.asfortranarray(delta.tensors[name]) for name in reversed(list(delta.tensors))}
    one, other = (
        encode(protect(Delta(tensors=tensors)), updates)[0].tensors for tensors in (delta.tensors, odd)
    )
    assert all(one[name].tobytes() == other[name].tobytes() for name in (CODES, SCALES))


def test_an_update_that_travels_as_it_is_travels_bit_for_bit() -> None:
    delta = random_delta(SPEC, 1)
    encoded, residual = encode(protect(delta), EXACT)
    assert residual == {}
    assert all(encoded.tensors[name] is delta.tensors[name] for name in delta.tensors)
    got = decode(to_arrays(encoded), SPEC, BOTH, EXACT)
    assert all(got.tensors[name].tobytes() == delta.tensors[name].tobytes() for name in delta.tensors)


def test_only_encode_makes_an_encoded() -> None:
    with pytest.raises(TypeError, match="only encode"):
        Encoded(tensors=random_delta(SPEC, 1).tensors)


def test_an_update_of_64_bits_is_not_quantized() -> None:
    delta = random_delta(small_spec(dtype="float64"), 1)
    with pytest.raises(UpdateError, match="FT503: the dtype is 'float64', and only 'float32'") as caught:
        encode(protect(delta), quantized())
    assert len(caught.value.problems) == 4


def test_two_arrays_take_a_header_and_a_name_each() -> None:
    record = message("int8")
    assert wire_bytes(record) == (14 + 10 + 8 + 6) + 4 * 4 + 2 * 128 + len(CODES) + len(SCALES)


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_that_was_not_quantized_is_refused_by_name_and_the_other_way_round(kind: str) -> None:
    exact = to_arrays(encode(protect(random_delta(SPEC, 1)), EXACT)[0])
    found = problems_of(exact, kind)
    assert {code for code, _, _ in found} == {"FT501"}
    assert found[0][1] == "the tensor 'codes' is missing"
    assert len(found) == 2 + 4
    with pytest.raises(UpdateError, match="FT501"):
        decode(message(kind), SPEC, BOTH, EXACT)


def test_another_quantization_is_refused_by_type_and_another_block_by_length() -> None:
    assert {code for code, _, _ in problems_of(message("int4"), "int8")} == {"FT502", "FT503"}
    spec = small_spec(((40, 40),))
    record = to_arrays(encode(protect(random_delta(spec, 0)), quantized(block_size=32))[0])
    with pytest.raises(UpdateError, match=r"FT502: the shape is \(6,\), expected \(10,\)"):
        decode(record, spec, BOTH, quantized(block_size=16))


def test_missing_and_unexpected_arrays_are_named() -> None:
    record = message("int8")
    del record[SCALES]
    record["evil\x1b[2J"] = Array(np.zeros(3, "float32"))
    found = problems_of(record)
    assert [code for code, _, _ in found] == ["FT501", "FT501"]
    assert found[0][1] == "the tensor 'scales' is missing"
    assert found[1][1] == r"the tensor 'evil\x1b[2J' is not one of those expected in this round"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [CODES, SCALES])
def test_arrays_that_are_too_short_or_too_long_are_refused(kind: str, name: str) -> None:
    for change in (slice(None, -1), slice(0, 0)):
        record = message(kind)
        record[name] = Array(array_of(record, name)[change])
        assert [code for code, _, _ in problems_of(record, kind)] == ["FT502"]
    record = message(kind)
    record[name] = Array(np.append(array_of(record, name), array_of(record, name)[:1]))
    assert [code for code, _, _ in problems_of(record, kind)] == ["FT502"]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scales_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    record = message("int8")
    scales = array_of(record, SCALES)
    scales[2] = bad
    record[SCALES] = Array(scales)
    [(code, what, where)] = problems_of(record)
    assert (code, where) == ("FT504", f"{WHERE}, tensor 'scales'")
    assert what == f"1 of 4 values are not finite, the first is {bad} at (2,)"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [-0.5, -0.0, 1e-40, 3.4e38])
def test_scales_that_no_encoder_makes_are_refused_with_their_tensor(kind: str, bad: float) -> None:
    record = message(kind)
    scales = array_of(record, SCALES)
    scales[-1] = bad
    record[SCALES] = Array(scales)
    [(code, what, where)] = problems_of(record, kind)
    assert (code, where) == ("FT509", f"{WHERE}, tensor {LAST!r}")
    assert what.startswith("1 of 1 scales are neither 0 nor from 1.175e-38 to ")


def test_integers_that_no_encoder_makes_are_refused() -> None:
    record = message("int8")
    codes = array_of(record, CODES)
    codes[:2] = -128
    record[CODES] = Array(codes)
    assert problems_of(record) == [
        ("FT509", "2 integers are below -127", f"{WHERE}, tensor {FIRST!r}"),
    ]
    for byte, integers in ((0x00, 2), (0x10, 1), (0x01, 1)):
        record = message("int4")
        codes = array_of(record, CODES)
        codes[0] = byte
        record[CODES] = Array(codes)
        [(code, what, _)] = problems_of(record, "int4")
        assert (code, what) == ("FT509", f"{integers} integers are below -7")


def test_a_half_byte_after_the_last_integer_is_empty() -> None:
    spec = small_spec(((1, 3),), rank=1)
    updates = quantized("int4")
    record = to_arrays(encode(protect(random_delta(spec, 0)), updates)[0])
    codes = array_of(record, CODES)
    assert [byte >> 4 for byte in (codes[1], codes[2])] == [8, 8]
    codes[1] ^= 0x10
    record[CODES] = Array(codes)
    with pytest.raises(UpdateError, match="FT509: the half byte after its last integer is not empty"):
        decode(record, spec, BOTH, updates)


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=True)
    return buffer.getvalue()


class Exploit:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("FEDTUNE_WAS_UNPICKLED", "yes")


@pytest.mark.parametrize("name", [CODES, SCALES])
def test_pickled_objects_are_refused_unread(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    payloads = [pickle.dumps(Exploit()), npy(np.array([Exploit()] * 4, dtype=object))]

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an unpickler was called")

    for owner, function in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (np, "load")):
        monkeypatch.setattr(owner, function, never)
    for data in payloads:
        record = message("int8")
        right = record[name]
        record[name] = Array(dtype=right.dtype, shape=right.shape, stype=right.stype, data=data)
        assert {code for code, _, _ in problems_of(record)} <= {"FT502", "FT503", "FT505"}


@pytest.mark.parametrize("name", [CODES, SCALES])
@pytest.mark.parametrize("in_header", [False, True])
def test_a_claim_of_two_gigabytes_reserves_nothing(name: str, in_header: bool) -> None:
    record = message("int8")
    right = record[name]
    header = (
        f"{{'descr': '{array_of(record, name).dtype.str}', 'fortran_order': False, 'shape': (2147483648,), }}"
    )
    data = b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117).encode() + b"\n" + bytes(38)
    record[name] = Array(
        dtype=right.dtype,
        shape=right.shape if in_header else (2**31,),
        stype=right.stype,
        data=data if in_header else right.data,
    )
    tracemalloc.start()
    try:
        found = problems_of(record)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [code for code, _, _ in found] == ["FT502"]
    assert peak < 200_000


GOOD = {kind: {name: message(kind)[name] for name in (CODES, SCALES)} for kind in KINDS}


@given(
    st.sampled_from(KINDS),
    st.sampled_from([CODES, SCALES]),
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, 165), st.integers(0, 255)),
            st.tuples(st.just("set"), st.integers(128, 165), st.integers(0, 255)),
            st.tuples(st.just("cut"), st.integers(0, 165), st.just(0)),
            st.tuples(st.just("insert"), st.integers(0, 165), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=6,
    ),
)
@settings(deadline=None, max_examples=600)
def test_mutated_bytes_give_what_an_encoder_can_mean_or_an_update_error(
    kind: str, name: str, edits: Any
) -> None:
    good = GOOD[kind][name]
    data = bytearray(good.data)
    for what, place, value in edits:
        if what == "set" and place < len(data):
            data[place] = value
        elif what == "cut":
            del data[place:]
        elif what == "insert":
            data.insert(place, value)
    array = Array(dtype=good.dtype, shape=good.shape, stype=good.stype, data=bytes(data))
    check_or_refuse(ArrayRecord({**GOOD[kind], name: array}), kind)


@given(st.sampled_from(KINDS), st.sampled_from([CODES, SCALES]), st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes_give_an_update_error(kind: str, name: str, data: bytes) -> None:
    good = GOOD[kind][name]
    for prefix in (b"", good.data[:10], good.data[:128]):
        array = Array(dtype=good.dtype, shape=good.shape, stype=good.stype, data=prefix + data)
        check_or_refuse(ArrayRecord({**GOOD[kind], name: array}), kind)


@given(
    st.sampled_from(KINDS),
    st.text(max_size=30),
    st.lists(st.integers(-(10**5000), 10**5000) | st.integers(-9, 99), max_size=3),
    st.text(max_size=30),
    st.text(max_size=30),
)
@settings(deadline=None, max_examples=200)
def test_arbitrary_claims_and_names_give_an_update_error(
    kind: str, dtype: str, shape: list[int], stype: str, name: str
) -> None:
    good = GOOD[kind][CODES]
    record = ArrayRecord(
        {**GOOD[kind], CODES: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=good.data)}
    )
    record[name] = Array(np.zeros(1))
    with pytest.raises(UpdateError) as caught:
        decode(record, SPEC, BOTH, quantized(kind))
    assert str(caught.value).replace("\n", "").isprintable()


def check_or_refuse(record: ArrayRecord, kind: str) -> None:
    try:
        delta = decode(record, SPEC, BOTH, quantized(kind))
    except UpdateError as error:
        refused = error
    else:
        check(delta, kind)
        return
    assert {problem.code for problem in refused.problems} <= {"FT502", "FT503", "FT504", "FT505", "FT509"}
    assert str(refused).replace("\n", "").isprintable()


def check(delta: Delta, kind: str) -> None:
    assert {name: tensor.shape for name, tensor in delta.tensors.items()} == dict(SPEC.shapes)
    assert all(np.isfinite(tensor).all() for tensor in delta.tensors.values())
    # What was read can be sent again.
    again, _ = encode(protect(delta), quantized(kind))
    twice = decode(to_arrays(again), SPEC, BOTH, quantized(kind))
    levels = 127 if kind == "int8" else 7
    for name, tensor in delta.tensors.items():
        bound = np.abs(tensor).max() * (1 / (2 * levels) + 2**-22) + 2.0**-126
        assert np.abs(tensor - twice.tensors[name]).max() <= bound


@pytest.mark.parametrize("kind", ["none", *KINDS])
def test_a_huge_update_is_refused_and_one_of_the_longest_norm_is_not(kind: str) -> None:
    updates = replace(EXACT if kind == "none" else quantized(kind), max_norm=1000.0)
    size = 1000.0 / random_delta(SPEC, 0).norm
    for factor, is_refused in ((0.9, False), (1.2, True), (1e30, True)):
        tensors = {
            name: tensor * np.float32(size * factor) for name, tensor in random_delta(SPEC, 0).tensors.items()
        }
        record = to_arrays(encode(protect(Delta(tensors=tensors)), updates)[0])
        if is_refused:
            with pytest.raises(UpdateError) as caught:
                decode(record, SPEC, BOTH, updates, where=WHERE)
            assert [(problem.code, problem.where) for problem in caught.value.problems] == [("FT511", WHERE)]
        else:
            decode(record, SPEC, BOTH, updates, where=WHERE)
    decode(record, SPEC, BOTH, replace(updates, max_norm=None), where=WHERE)
