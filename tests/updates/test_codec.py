"""The parser of what other machines send: exactly the expected tensors, or one error that says all."""

from __future__ import annotations

import io
import os
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as stnp
from support.adapters import random_adapter, random_delta, small_spec

from fedtune.config.compose import compose
from fedtune.errors import UpdateError
from fedtune.models.adapter import AdapterSpec
from fedtune.updates.codec import Layout, arrays_exactly, from_arrays, to_arrays, wire_bytes
from fedtune.updates.encode import encode
from fedtune.updates.protect import protect

SPEC = small_spec()
NAME = SPEC.names(("A",))[0]  # (2, 7)
BOTH = ("A", "B")


def npy(array: np.ndarray[Any, Any], *, version: tuple[int, int] | None = None) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=version, allow_pickle=True)
    return buffer.getvalue()


def claiming(data: bytes, *, dtype: str = "float32", shape: tuple[int, ...] = (2, 7)) -> Array:
    """An array whose claims are right, whatever its bytes are."""
    return Array(dtype=dtype, shape=shape, stype="numpy.ndarray", data=data)


def record_with(array: Array, name: str = NAME) -> ArrayRecord:
    record = to_arrays(random_adapter(SPEC, 0))
    record[name] = array
    return record


def problems_of(record: ArrayRecord, spec: AdapterSpec = SPEC) -> list[tuple[str, str, str]]:
    with pytest.raises(UpdateError) as caught:
        from_arrays(record, spec, BOTH, where="round 3, client heart")
    return [(problem.code, problem.what, problem.where) for problem in caught.value.problems]


def the_problem_of(array: Array) -> tuple[str, str]:
    [(code, what, where)] = problems_of(record_with(array))
    assert where == f"round 3, client heart, tensor {NAME!r}"
    return code, what


@given(st.data(), st.sampled_from(["float32", "float64"]), st.sampled_from([("A",), ("B",), BOTH]))
@settings(deadline=None, max_examples=50)
def test_every_finite_value_survives_bit_for_bit(data: Any, dtype: str, factors: Any) -> None:
    spec = small_spec(((3, 2), (1, 5)), dtype=dtype)
    finite = stnp.from_dtype(np.dtype(dtype), allow_nan=False, allow_infinity=False)
    adapter = {
        name: data.draw(stnp.arrays(dtype, spec.shapes[name], elements=finite))
        for name in spec.names(factors)
    }
    decoded = from_arrays(to_arrays(adapter), spec, factors)
    assert list(decoded) == list(spec.names(factors))
    assert all(decoded[name].tobytes() == adapter[name].tobytes() for name in adapter)


@given(
    stnp.arrays(
        dtype=st.sampled_from(["<f4", ">f4", "<f8", "<i8", "|i1", "|u1", "<f2"]),
        shape=stnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=5),
    ),
    st.booleans(),
)
def test_an_array_is_written_as_flower_writes_it(array: Any, transposed: bool) -> None:
    ours = to_arrays({"x": array.T if transposed else array})["x"]
    values = np.ascontiguousarray(array.T if transposed else array)
    theirs = Array(values.astype(values.dtype.newbyteorder("<")))
    assert (ours.dtype, ours.shape, ours.stype) == (theirs.dtype, theirs.shape, theirs.stype)
    assert ours.data == theirs.data


def test_one_copy_of_the_values_is_made_on_either_side() -> None:
    adapter = {name: np.zeros((512, 512), np.float32) for name in "abcd"}
    size, spare = 4 * 2**20, 2**17
    layouts = {name: Layout(shape=(512, 512), dtype=np.dtype(np.float32)) for name in adapter}
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        record = to_arrays(adapter)
        assert tracemalloc.get_traced_memory()[1] - before < size + spare
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        decoded = arrays_exactly(record, layouts, where="here")
        # The mask of finite values of one tensor comes on top: a byte each.
        assert tracemalloc.get_traced_memory()[1] - before < size + 512 * 512 + spare
    finally:
        tracemalloc.stop()
    assert all(array.flags.owndata and array.flags.writeable for array in decoded.values())


def test_a_protected_delta_decodes_to_arrays_of_its_own() -> None:
    delta = random_delta(SPEC, 5, factors=("B",))
    record = to_arrays(encode(protect(delta), compose([]).updates)[0])
    decoded = from_arrays(record, SPEC, ("B",))
    for name, tensor in decoded.items():
        assert np.array_equal(tensor, delta.tensors[name])
        assert tensor.flags.writeable
        assert tensor.flags.c_contiguous
        assert tensor.flags.owndata
        tensor[...] = 1
    assert all(np.array_equal(record[name].numpy(), delta.tensors[name]) for name in decoded)


def test_order_of_the_message_does_not_matter() -> None:
    adapter = random_adapter(SPEC, 1)
    backwards = dict(reversed(adapter.items()))
    assert list(from_arrays(to_arrays(backwards), SPEC, BOTH)) == list(SPEC.shapes)


def test_memory_layout_and_byte_order_of_the_sender_do_not_matter() -> None:
    adapter = random_adapter(SPEC, 1)
    odd = {name: np.asfortranarray(tensor).astype(">f4") for name, tensor in adapter.items()}
    decoded = from_arrays(to_arrays(odd), SPEC, BOTH)
    assert all(np.array_equal(decoded[name], adapter[name]) for name in adapter)


def test_missing_and_unexpected_tensors_are_named() -> None:
    record = to_arrays(random_adapter(SPEC, 0))
    del record[NAME]
    record["evil\x1b[2J"] = Array(np.zeros(3, "float32"))
    found = problems_of(record)
    assert [code for code, _, _ in found] == ["FT501", "FT501"]
    assert found[0][1] == f"the tensor {NAME!r} is missing"
    assert found[1][1] == r"the tensor 'evil\x1b[2J' is not one of those expected in this round"
    assert found[0][2] == "round 3, client heart, which holds 4 tensors where 4 are expected"


def test_factors_that_are_not_trained_in_this_round_are_unexpected() -> None:
    with pytest.raises(UpdateError) as caught:
        from_arrays(to_arrays(random_adapter(SPEC, 0)), SPEC, ("B",))
    assert {problem.code for problem in caught.value.problems} == {"FT501"}
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (Array(np.zeros((7, 2), "float32")), "the shape is (7, 2), expected (2, 7)"),
        (Array(np.zeros((1,), "float32")), "the shape is (1,), expected (2, 7)"),
        (Array(np.zeros((2, 1), "float32")), "the shape is (2, 1), expected (2, 7)"),
        (Array(np.zeros((), "float32")), "the shape is (), expected (2, 7)"),
        (claiming(npy(np.zeros((1,), "float32"))), "the shape is (1,) in its header, expected (2, 7)"),
        (claiming(npy(np.zeros((14,), "float32"))), "the shape is (14,) in its header, expected (2, 7)"),
    ],
)
def test_another_shape_is_refused_and_never_broadcast(array: Array, said: str) -> None:
    assert the_problem_of(array) == ("FT502", said)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (Array(np.zeros((2, 7))), "the dtype is 'float64', expected 'float32'"),
        (claiming(npy(np.zeros((2, 7)))), "the dtype is '<f8' in its header, expected 'float32'"),
        (claiming(npy(np.zeros((2, 7), ">f4"))), "the dtype is '>f4' in its header, expected 'float32'"),
        (claiming(npy(np.zeros((2, 7), "int32"))), "the dtype is '<i4' in its header, expected 'float32'"),
    ],
)
def test_another_dtype_is_refused_and_never_cast(array: Array, said: str) -> None:
    assert the_problem_of(array) == ("FT503", said)


class Exploit:
    """Leaves a trace where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.putenv, ("FEDTUNE_WAS_UNPICKLED", "yes")


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Exploit()),
        npy(np.array([[Exploit()] * 7] * 2, dtype=object)),
        b"\x93NUMPY\x01\x00\x76\x00" + pickle.dumps(Exploit()).ljust(118),
    ],
    ids=["bare pickle", "array of objects", "pickle as a header"],
)
def test_pickled_objects_are_refused_unread(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("an unpickler was called")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (np, "load")):
        monkeypatch.setattr(owner, name, never)
    code, _ = the_problem_of(claiming(data))
    assert code in {"FT503", "FT505"}
    code, _ = the_problem_of(claiming(data, dtype="object"))
    assert code == "FT503"


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (claiming(b""), "it does not begin as a numpy array does, but with b''"),
        (claiming(b"PK\x03\x04zip"), r"it does not begin as a numpy array does, but with b'PK\x03\x04zip'"),
        (claiming(npy(np.zeros((2, 7), "float32"), version=(2, 0))), "it does not begin as a numpy array"),
        (claiming(npy(np.asfortranarray(np.ones((2, 7), "float32")))), "its values are in Fortran order"),
        (claiming(npy(np.zeros((2, 7), "float32")) + b"x"), "it holds 57 bytes of values, expected 56"),
        (claiming(npy(np.zeros((2, 7), "float32"))[:-4]), "it holds 52 bytes of values, expected 56"),
        (claiming(b"\x93NUMPY\x01\x00\xff\xff" + b" " * 70_000), "its header claims 65,535 bytes"),
        (claiming(b"\x93NUMPY\x01\x00\x04\x00(9,)"), "its header is not that of a plain array: b'(9,)'"),
        (claiming(npy(np.zeros((2, 7), [("x", "<f4")]))), "its header is not that of a plain array"),
        (
            Array(dtype="float32", shape=(2, 7), stype="torch.tensor", data=npy(np.zeros((2, 7), "float32"))),
            "it is serialized as 'torch.tensor', expected 'numpy.ndarray'",
        ),
    ],
)  # fmt: skip
def test_bytes_that_are_not_one_plain_array_are_refused(array: Array, said: str) -> None:
    code, what = the_problem_of(array)
    assert code == "FT505"
    assert what.startswith(said)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_with_their_place(bad: float) -> None:
    values = np.zeros((2, 7), "float32")
    values[1, 3] = values[1, 5] = bad
    assert the_problem_of(Array(values)) == (
        "FT504",
        f"2 of 14 values are not finite, the first is {bad} at (1, 3)",
    )


def test_all_problems_of_a_message_are_said_at_once() -> None:
    a_one, a_two = SPEC.names(("A",))
    b_one, b_two = SPEC.names(("B",))
    record = ArrayRecord(
        {
            a_one: Array(np.zeros((1,), "float64")),
            b_one: Array(np.full((5, 2), np.nan, "float32")),
            b_two: claiming(b"", shape=(3, 2)),
            "other": Array(np.zeros(1)),
        }
    )
    found = problems_of(record)
    assert sorted(code for code, _, _ in found) == ["FT501", "FT501", "FT502", "FT503", "FT504", "FT505"]
    text = " ".join(what + where for _, what, where in found)
    assert all(name in text for name in (a_one, a_two, b_one, b_two, "other"))


def test_a_flood_of_tensors_is_counted_not_listed() -> None:
    record = to_arrays(random_adapter(SPEC, 0))
    empty = Array(np.zeros(0, "float32"))
    for i in range(5_000):
        record[f"{i}" * 500] = empty
    found = problems_of(record)
    assert len(found) == 21
    assert found[-1][1] == "the same is wrong with 4,980 more tensors"
    assert len(str(found)) < 20_000


def header(text: str) -> bytes:
    body = text.ljust(117).encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize(
    "shape",
    ["(536870912,)", "(2, 999999999999999999)", "(0, 7)", "(2, 7, 1)", "(-2, 7)", "(9" + "0" * 30 + ",)"],
)
def test_a_header_that_claims_gigabytes_reserves_nothing(shape: str) -> None:
    data = header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}") + bytes(56)
    record = record_with(claiming(data))
    tracemalloc.start()
    try:
        found = problems_of(record)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found[0][0] in {"FT502", "FT505"}
    assert peak < 200_000


GOOD = to_arrays(random_adapter(SPEC, 0))[NAME].data


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("set"), st.integers(0, len(GOOD) - 1), st.integers(0, 255)),
            st.tuples(st.just("cut"), st.integers(0, len(GOOD)), st.just(0)),
            st.tuples(st.just("insert"), st.integers(0, len(GOOD)), st.integers(0, 255)),
        ),
        min_size=1,
        max_size=6,
    )
)
@settings(deadline=None, max_examples=400)
def test_mutated_bytes_give_finite_values_of_the_right_shape_or_an_update_error(edits: Any) -> None:
    data = bytearray(GOOD)
    for kind, place, value in edits:
        if kind == "set" and place < len(data):
            data[place] = value
        elif kind == "cut":
            del data[place:]
        elif kind == "insert":
            data.insert(place, value)
    check_or_refuse(claiming(bytes(data)))


@given(st.binary(max_size=300))
@settings(deadline=None, max_examples=200)
def test_arbitrary_bytes_after_the_magic_give_an_update_error(data: bytes) -> None:
    for prefix in (b"", b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', "):
        check_or_refuse(claiming(prefix + data))


@given(
    st.text(max_size=30),
    st.lists(st.integers(-(10**5000), 10**5000) | st.integers(-9, 9), max_size=4),
    st.text(max_size=30),
    st.text(max_size=30),
)
@settings(deadline=None, max_examples=200)
def test_arbitrary_claims_and_names_give_an_update_error(
    dtype: str, shape: list[int], stype: str, name: str
) -> None:
    record = record_with(Array(dtype=dtype, shape=tuple(shape), stype=stype, data=GOOD))
    record[name] = Array(np.zeros(1))
    with pytest.raises(UpdateError) as caught:
        from_arrays(record, SPEC, BOTH)
    assert str(caught.value).replace("\n", "").isprintable()


def check_or_refuse(array: Array) -> None:
    try:
        decoded = from_arrays(record_with(array), SPEC, BOTH)
    except UpdateError as error:
        refused = error
    else:
        assert decoded[NAME].shape == (2, 7)
        assert decoded[NAME].dtype == np.float32
        assert np.isfinite(decoded[NAME]).all()
        return
    assert {problem.code for problem in refused.problems} <= {"FT502", "FT503", "FT504", "FT505"}


def test_wire_bytes_are_those_of_tensors_and_names_and_close_to_what_flower_sends() -> None:
    spec = small_spec(((576, 576), (192, 576)), rank=16)
    record = to_arrays(random_adapter(spec, 0))
    headers = 128 * len(spec.shapes)
    assert wire_bytes(record) == spec.nbytes() + headers + sum(map(len, spec.shapes))

    def deflated(part: Any) -> int:
        children = getattr(part, "children", None) or {}
        return len(part.deflate()) + sum(deflated(child) for child in children.values())

    assert wire_bytes(record) < deflated(record) < 1.02 * wire_bytes(record)
