"""Many arrays as one on the way: the same arrays come out, and nothing but a whole parcel is opened."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st
from support.adapters import random_adapter, small_spec

from fedtune.errors import UpdateError
from fedtune.federation.parcels import STYPE, ParcelGrid, opened, packed, through_parcels
from fedtune.simulation.grid import InProcessGrid
from fedtune.updates.codec import from_arrays, to_arrays

SPEC = small_spec()
BOTH = ("A", "B")
KEY = "arrays"


def content_of(record: ArrayRecord) -> RecordDict:
    return RecordDict({KEY: record, "text": ConfigRecord({"json": "{}"})})


def facts(record: Any) -> list[tuple[Any, ...]]:
    return [(name, each.dtype, tuple(each.shape), each.stype, each.data) for name, each in record.items()]


arrays = st.builds(
    lambda dtype, shape, stype, data: Array(dtype=dtype, shape=tuple(shape), stype=stype, data=data),
    st.text(max_size=9),
    st.lists(st.integers(0, 2**40), max_size=4),
    st.text(max_size=9),
    st.binary(max_size=40),
)


@given(st.dictionaries(st.text(max_size=12), arrays, min_size=2, max_size=6))
def test_what_is_packed_is_opened_to_the_same_arrays_in_the_same_order(given: dict[str, Array]) -> None:
    before = content_of(ArrayRecord(given))
    on_the_way = packed(before)
    assert len(on_the_way[KEY]) == 1
    after = opened(on_the_way)
    assert facts(after[KEY]) == facts(before[KEY])
    assert after["text"] == before["text"]
    assert len(before[KEY]) == len(given)


def test_a_record_of_one_array_and_one_of_none_travel_as_they_are() -> None:
    for count in (0, 1):
        record = ArrayRecord({name: Array(np.ones(2)) for name in "ab"[:count]})
        assert facts(packed(content_of(record))[KEY]) == facts(record)
        assert facts(opened(content_of(record))[KEY]) == facts(record)


def test_an_adapter_costs_a_table_more_than_its_arrays() -> None:
    record = to_arrays(random_adapter(SPEC, 0))
    (parcel,) = packed(content_of(record))[KEY].values()
    assert len(parcel.data) < sum(len(array.data) for array in record.values()) + 120 * len(record)


GOOD = next(iter(packed(content_of(to_arrays(random_adapter(SPEC, 0))))[KEY].values())).data
TABLE_BYTES = int.from_bytes(GOOD[8:12], "little")


def with_data(data: bytes) -> RecordDict:
    return content_of(
        ArrayRecord({"parcel": Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})
    )


def with_table(table: Any, rest: bytes = b"") -> RecordDict:
    text = json.dumps(table).encode()
    return with_data(GOOD[:8] + len(text).to_bytes(4, "little") + text + rest)


@given(st.data())
def test_mutated_bytes_are_arrays_with_claims_or_stay_unopened(data: st.DataObject) -> None:
    changed = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, 12 + TABLE_BYTES))] = data.draw(st.integers(0, 255))
    end = data.draw(st.sampled_from([len(GOOD), len(GOOD) - 1, 11, 20]))
    content = opened(with_data(bytes(changed[:end])))
    try:
        adapter = from_arrays(content[KEY], SPEC, BOTH)
    except UpdateError:
        return
    assert list(adapter) == list(SPEC.names(BOTH))


@pytest.mark.parametrize(
    ("table", "rest"),
    [
        ({}, b""),
        (None, b""),
        ([1], b""),
        ([["a", "float32", [1], "numpy.ndarray"]], b""),
        ([["a", "float32", [1], "numpy.ndarray", 3]], b"12"),
        ([["a", "float32", [1], "numpy.ndarray", 1]], b"12"),
        ([["a", "float32", [1], "numpy.ndarray", -1], ["b", "float32", [1], "numpy.ndarray", 3]], b"12"),
        ([["a", "float32", [1], "numpy.ndarray", 1], ["a", "float32", [1], "numpy.ndarray", 1]], b"12"),
        ([["a", "float32", [1], "numpy.ndarray", True]], b"1"),
        ([["a", "float32", [1.0], "numpy.ndarray", 1]], b"1"),
        ([["a", "float32", [2**70], "numpy.ndarray", 1]], b"1"),
        ([["a", "float32", [1] * 9, "numpy.ndarray", 1]], b"1"),
        ([["a", 7, [1], "numpy.ndarray", 1]], b"1"),
        ([["a", "uint8", [1], STYPE, 1]], b"1"),
    ],
)
def test_what_is_no_whole_parcel_stays_as_it_came_and_is_refused_by_name(table: Any, rest: bytes) -> None:
    content = opened(with_table(table, rest))
    assert [array.stype for array in content[KEY].values()] == [STYPE]
    with pytest.raises(UpdateError, match="FT501"):
        from_arrays(content[KEY], SPEC, BOTH)


@pytest.mark.parametrize(
    "data", [b"", GOOD[:8], GOOD[:11], b"X" + GOOD[1:], GOOD[:8] + b"\xff" * 4 + GOOD[12:]]
)
def test_a_broken_beginning_stays_as_it_came(data: bytes) -> None:
    content = opened(with_data(data))
    assert facts(content[KEY]) == facts(with_data(data)[KEY])


def test_who_uses_the_grid_and_who_answers_see_no_parcel() -> None:
    """On the way there is one array either way, and what is sent to all sites is packed once."""
    travelled: list[RecordDict] = []
    adapter = random_adapter(SPEC, 0)

    def doubled(message: Message, context: Context, bundle: str) -> Message:
        got = from_arrays(message.content[KEY], SPEC, BOTH)
        return Message(
            content_of(to_arrays({name: 2 * tensor for name, tensor in got.items()})), reply_to=message
        )

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        travelled.append(message.content)
        reply = through_parcels(doubled)(message, context, "")
        travelled.append(reply.content)
        return reply

    grid = ParcelGrid(InProcessGrid(app, 3))
    request = content_of(to_arrays(adapter))
    messages = [Message(request, node, "train") for node in grid.get_node_ids()]
    replies = list(grid.send_and_receive(messages, timeout=60))
    assert len(replies) == 3
    for reply in replies:
        for name, tensor in from_arrays(reply.content[KEY], SPEC, BOTH).items():
            np.testing.assert_array_equal(tensor, 2 * adapter[name], strict=True)
    assert all(len(content[KEY]) == 1 for content in travelled)
    assert len(request[KEY]) == len(adapter)
