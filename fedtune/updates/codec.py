"""Between arrays and what travels: the parser of everything that another machine says about tensors.

Flower carries an array as the bytes of ``numpy.save`` beside three claims about them (dtype, shape, stype).
None of it is believed. What is expected is known beforehand, from the `AdapterSpec`, so decoding compares
instead of interpreting: the header is matched by a regular expression, never evaluated; a type of Python
objects is refused as any other wrong type, and there is no unpickler in this path.

Guarantees of `from_arrays` and `arrays_exactly`:

* They return exactly the expected names, each array C-contiguous, writable, owned by the caller, of the
  expected shape and dtype, all values finite. Nothing is broadcast, cast or transposed.
* Anything else is an `UpdateError`, whatever the bytes are, with every problem found.
* It allocates no more than what is expected takes: lengths are compared before a byte is copied, and a
  header's claims reserve nothing.

A problem's text shows what was received, shortened and with control characters escaped.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord

from fedtune.errors import Problem, UpdateError
from fedtune.models.adapter import Adapter, AdapterSpec, Factor
from fedtune.updates.encode import Encoded
from fedtune.updates.problems import capped, not_finite, shown

__all__ = ["Layout", "arrays_exactly", "from_arrays", "to_arrays", "wire_bytes"]

_STYPE = "numpy.ndarray"
_MAGIC = b"\x93NUMPY\x01\x00"
_PREFIX_BYTES = len(_MAGIC) + 2
_MAX_HEADER_BYTES = 1024
_HEADER = re.compile(
    rb"\{'descr': '(?P<descr>[<>|=]?[A-Za-z][0-9]{0,4})', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:[0-9]{1,18}(?:, [0-9]{1,18})*,?)?)\), \} *\n"
)
_SAME_RELEASE = (
    "install the same fedtune on the server and on every site, with the same model, peft and updates settings"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What an array must be.

    Attributes:
        shape: Its shape.
        dtype: Its type, of either byte order; on the wire it is little-endian.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def to_arrays(payload: Encoded | Adapter) -> ArrayRecord:
    """Pack what may travel: an encoded update to the server, or the global adapter to a site.

    Args:
        payload: An `Encoded`, or an adapter as a plain dict. A bare `Delta` is refused, and so is a
            `Protected`: see `fedtune.updates.protect` and `fedtune.updates.encode`.

    Returns:
        One array for each tensor in the order given; little-endian and C-ordered on every machine.

    Raises:
        TypeError: The payload is neither.
    """
    if isinstance(payload, Encoded):
        tensors: Mapping[str, np.ndarray[Any, Any]] = payload.tensors
    elif isinstance(payload, dict):
        tensors = payload
    else:
        raise TypeError(f"only an Encoded or an adapter may travel, got {type(payload).__name__}")
    record = ArrayRecord()  # made of a dictionary, it would make every Array a second time
    for name, tensor in tensors.items():
        record[name] = _usual(tensor.shape, tensor.dtype).array(_little_endian(tensor))
    return record


def from_arrays(
    record: ArrayRecord, spec: AdapterSpec, factors: Collection[Factor], *, where: str = "the message"
) -> Adapter:
    """Decode tensors that another machine sent, if they are exactly the expected ones.

    Args:
        record: What arrived.
        spec: Names, shapes and dtype of the run's adapter.
        factors: The factors that are expected: those trained in this round, or both for a whole adapter.
        where: Who sent it and when, for the text of errors, such as ``round 3, client heart``.

    Returns:
        New arrays in the spec's order.

    Raises:
        UpdateError: FT501 names, FT502 shape, FT503 dtype, FT504 values not finite, FT505 bytes that are not
            one plain array of the expected length. At most 20 problems of a code are listed, then counted.
    """
    dtype = np.dtype(spec.dtype)
    layouts = {name: Layout(shape=spec.shapes[name], dtype=dtype) for name in spec.names(factors)}
    return arrays_exactly(record, layouts, where=where)


def arrays_exactly(
    record: ArrayRecord, layouts: Mapping[str, Layout], *, where: str
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """Decode arrays that another machine sent, if they are exactly those laid out.

    Args:
        record: What arrived.
        layouts: Name to what the array must be.
        where: As in `from_arrays`.

    Returns:
        New arrays in the order of the layouts.

    Raises:
        UpdateError: As `from_arrays`.
    """
    decoded: dict[str, np.ndarray[Any, np.dtype[Any]]] = {}
    problems = capped(_decode(record, layouts, where, decoded))
    if problems:
        raise UpdateError(problems)
    return decoded


def wire_bytes(record: ArrayRecord) -> int:
    """Return the bytes of a record's tensors and names.

    Flower's framing (object ids, JSON about each array) is left out: it is a constant for each tensor, 0.7 %
    of a rank-16 adapter of a 135M model, and belongs to Flower's version, not to the method.
    """
    return sum(len(name.encode()) + len(array.data) for name, array in record.items())


@dataclass(frozen=True, kw_only=True)
class _Expected:
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    where: str

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def _decode(
    record: ArrayRecord,
    layouts: Mapping[str, Layout],
    where: str,
    decoded: dict[str, np.ndarray[Any, np.dtype[Any]]],
) -> Iterator[Problem]:
    """Fill ``decoded`` and yield what is wrong, one at a time: a flood of problems is counted, not stored."""
    yield from _problems_of_names(record, tuple(layouts), where)
    for name, layout in layouts.items():
        if name not in record:
            continue
        array, usual = record[name], _usual(layout.shape, layout.dtype)
        if usual.is_form_of(array):
            decoded[name] = usual.values(array.data)
            if not np.isfinite(decoded[name]).all():
                yield from filter(None, [not_finite(name, decoded[name], where)])
            continue
        expected = _Expected(shape=layout.shape, dtype=layout.dtype, where=f"{where}, tensor {shown(name)}")
        # Where the claims are wrong already, the bytes would only say the same again.
        found = list(_problems_of_claims(array, expected)) or list(_problems_of_bytes(array.data, expected))
        if found:
            yield from found
            continue
        decoded[name] = _values(array.data, expected)
        problem_of_values = not_finite(name, decoded[name], where)
        if problem_of_values is not None:
            yield problem_of_values


@dataclass(frozen=True, kw_only=True)
class _Usual:
    """How `to_arrays` writes arrays of a shape and type; what is written so needs no closer look.

    Attributes:
        shape: Theirs.
        dtype: Theirs, little-endian.
        native: Theirs, of this machine's byte order.
        type_name: What Flower's claim calls it.
        header: What `numpy.save` writes before the values.
        length: Bytes of the whole.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    native: np.dtype[Any]
    type_name: str
    header: bytes
    length: int

    def is_form_of(self, array: Array) -> bool:
        """Whether claims, header and length are exactly these; the values may still be anything."""
        data = array.data
        return (
            type(data) is bytes
            and len(data) == self.length
            and data.startswith(self.header)
            and array.shape == self.shape
            and array.dtype == self.type_name
            and array.stype == _STYPE
        )

    def values(self, data: bytes) -> np.ndarray[Any, Any]:
        """Return a copy of the values, of this machine's byte order."""
        sent = np.ndarray(self.shape, self.dtype, data, len(self.header))
        return sent.astype(self.native, copy=True)

    def array(self, tensor: np.ndarray[Any, Any]) -> Array:
        """Return what Flower makes of an array, with one copy of its values instead of three."""
        data = b"".join((self.header, tensor.reshape(-1).view(np.uint8).data))
        return Array(dtype=self.type_name, shape=self.shape, stype=_STYPE, data=data)


@lru_cache(maxsize=4096)
def _usual(shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Usual:
    little, header = dtype.newbyteorder("<"), BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": little.str, "fortran_order": False, "shape": shape}
    )
    return _Usual(
        shape=shape,
        dtype=little,
        native=dtype.newbyteorder("="),
        type_name=dtype.name,
        header=header.getvalue(),
        length=len(header.getvalue()) + prod(shape) * dtype.itemsize,
    )


def _little_endian(tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    # ascontiguousarray would turn a scalar into a vector; no adapter tensor is one.
    return np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))


def _problems_of_names(record: ArrayRecord, expected: tuple[str, ...], where: str) -> Iterator[Problem]:
    for name in expected:
        if name not in record:
            yield Problem(
                code="FT501",
                what=f"the tensor {shown(name)} is missing",
                where=f"{where}, which holds {len(record):,} tensors where {len(expected):,} are expected",
                fix=_SAME_RELEASE,
            )
    known = frozenset(expected)
    for name in record:
        if name not in known:
            yield Problem(
                code="FT501",
                what=f"the tensor {shown(name)} is not one of those expected in this round",
                where=f"{where}, which holds {len(record):,} tensors where {len(expected):,} are expected",
                fix=_SAME_RELEASE,
            )


def _problems_of_claims(array: Array, expected: _Expected) -> Iterator[Problem]:
    """Compare what Flower's metadata says about an array with what is expected."""
    if array.stype != _STYPE:
        yield _damaged(f"it is serialized as {shown(array.stype)}, expected {_STYPE!r}", expected)
    if array.dtype != expected.dtype.name:
        yield _wrong_dtype(shown(array.dtype), expected)
    if tuple(array.shape) != expected.shape:
        yield _wrong_shape(shown(tuple(array.shape)), expected)


def _problems_of_bytes(data: bytes, expected: _Expected) -> Iterator[Problem]:
    """Compare the bytes of ``numpy.save`` with what is expected, without evaluating any of them.

    The format is numpy's NPY version 1.0 (numpy.lib.format): magic, two bytes of header length, the header,
    then the values.
    """
    if not isinstance(data, bytes) or data[: len(_MAGIC)] != _MAGIC:
        yield _damaged(f"it does not begin as a numpy array does, but with {shown(data[:12])}", expected)
        return
    start = _start_of_values(data)
    if start > _PREFIX_BYTES + _MAX_HEADER_BYTES:
        yield _damaged(f"its header claims {start - _PREFIX_BYTES:,} bytes, at most 1,024 are read", expected)
        return
    header = _HEADER.fullmatch(data[_PREFIX_BYTES:start])
    if header is None:
        yield _damaged(
            f"its header is not that of a plain array: {shown(data[_PREFIX_BYTES:start])}", expected
        )
        return
    descr, little_endian = header["descr"].decode(), expected.dtype.newbyteorder("<").str
    if descr != little_endian:
        yield _wrong_dtype(f"{descr!r} in its header", expected)
    shape = tuple(int(size) for size in header["shape"].split(b",") if size.strip())
    if shape != expected.shape:
        yield _wrong_shape(f"{shape} in its header", expected)
    if header["fortran"] != b"False":
        yield _damaged("its values are in Fortran order, expected C order", expected)
    if descr == little_endian and shape == expected.shape and len(data) - start != expected.nbytes:
        yield _damaged(
            f"it holds {len(data) - start:,} bytes of values, expected {expected.nbytes:,}", expected
        )


def _start_of_values(data: bytes) -> int:
    return _PREFIX_BYTES + int.from_bytes(data[len(_MAGIC) : _PREFIX_BYTES], "little")


def _values(data: bytes, expected: _Expected) -> np.ndarray[Any, Any]:
    values = np.frombuffer(data, dtype=expected.dtype.newbyteorder("<"), offset=_start_of_values(data))
    return values.reshape(expected.shape).astype(expected.dtype, copy=True)


def _wrong_shape(got: str, expected: _Expected) -> Problem:
    return Problem(
        code="FT502",
        what=f"the shape is {got}, expected {expected.shape}",
        where=expected.where,
        fix="use the same base model, peft.rank, peft.target_modules and updates on the server and the sites",
    )


def _wrong_dtype(got: str, expected: _Expected) -> Problem:
    return Problem(
        code="FT503",
        what=f"the dtype is {got}, expected {expected.dtype.name!r}",
        where=expected.where,
        fix="use the same model.compute_dtype and updates.quantization on the server and on every site",
    )


def _damaged(what: str, expected: _Expected) -> Problem:
    return Problem(code="FT505", what=what, where=expected.where, fix=_SAME_RELEASE)
