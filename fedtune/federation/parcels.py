"""An adapter as one object instead of hundreds: what the way costs is Flower's work for each object.

Flower keeps each array of a message as objects of its own, asked for one by one; every request is a
signature, transactions of the SuperLink's database and the scheduling of four programs. An adapter of 420
tensors and 20 MB took a minute to four sites on two cores. So several arrays travel as one.

Opening one is parsing what a stranger wrote, and believes nothing: an entry is the same unread `Array` that
Flower would have made, with the same claims, which whoever reads it compares (`fedtune.updates.codec`). What
is not exactly a parcel stays as it came, and is refused where arrays of a known name are expected.

The format: the magic bytes, the table's length (4 bytes, little-endian), the table as JSON, one
``[name, dtype, shape, stype, length]`` an array, then the bytes of all arrays in that order.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Final

from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

__all__ = ["ParcelGrid", "opened", "packed", "through_parcels"]

STYPE: Final = "fedtune.parcel"
_MAGIC: Final = b"FTPARCEL"
_PREFIX_BYTES: Final = len(_MAGIC) + 4
_MOST_TABLE_BYTES: Final = 16 * 2**20
_MOST_DIMENSIONS: Final = 8

Answer = Callable[[Message, Context, str], Message]


def packed(content: RecordDict) -> RecordDict:
    """Return a content in which each record of several arrays is a record of one; the given one stays."""
    return RecordDict(
        {
            name: _packed(record) if isinstance(record, ArrayRecord) and len(record) > 1 else record
            for name, record in content.items()
        }
    )


def opened(content: RecordDict) -> RecordDict:
    """Return the content that was `packed`; a record that is no whole parcel is in it as it came."""
    return RecordDict(
        {
            name: (_opened(record) or record) if isinstance(record, ArrayRecord) else record
            for name, record in content.items()
        }
    )


def through_parcels(answer: Answer) -> Answer:
    """Return an answer to messages that come packed, which leaves packed."""

    def answered(message: Message, context: Context, bundle: str) -> Message:
        if message.has_content():
            message.content = opened(message.content)
        reply = answer(message, context, bundle)
        if reply.has_content():
            reply.content = packed(reply.content)
        return reply

    return answered


class ParcelGrid(Grid):
    """A Flower grid to sites that take and give parcels; who uses it sees none.

    Args:
        grid: Flower's way to the sites.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def set_run(self, run: Any) -> None:
        """As the grid's."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """As the grid's."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """As the grid's."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        """As the grid's."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, packed."""
        return self._grid.push_messages(_all_packed(messages))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return replies that came, opened."""
        return map(_with_opened, self._grid.pull_messages(message_ids))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Send messages, packed, and return their replies, opened."""
        return map(_with_opened, self._grid.send_and_receive(_all_packed(messages), timeout=timeout))


def _all_packed(messages: Iterable[Message]) -> list[Message]:
    """Pack what is sent to several sites once: they share one content."""
    made: dict[int, RecordDict] = {}
    listed = list(messages)
    contents = [message.content if message.has_content() else None for message in listed]
    for message, content in zip(listed, contents, strict=True):
        if content is not None:
            if id(content) not in made:
                made[id(content)] = packed(content)
            message.content = made[id(content)]
    return listed


def _with_opened(message: Message) -> Message:
    if message.has_content():
        message.content = opened(message.content)
    return message


def _packed(record: ArrayRecord) -> ArrayRecord:
    table = [
        [name, array.dtype, list(array.shape), array.stype, len(array.data)] for name, array in record.items()
    ]
    text = json.dumps(table, separators=(",", ":")).encode()
    data = b"".join(
        (_MAGIC, len(text).to_bytes(4, "little"), text, *(array.data for array in record.values()))
    )
    return ArrayRecord({"parcel": Array(dtype="uint8", shape=(len(data),), stype=STYPE, data=data)})


def _opened(record: ArrayRecord) -> ArrayRecord | None:
    """Return the arrays of a parcel; None for anything else."""
    arrays = list(record.values())
    if len(arrays) != 1 or arrays[0].stype != STYPE or not isinstance(arrays[0].data, bytes):
        return None
    data = arrays[0].data
    start = _PREFIX_BYTES + int.from_bytes(data[len(_MAGIC) : _PREFIX_BYTES], "little")
    if data[: len(_MAGIC)] != _MAGIC or not _PREFIX_BYTES <= start <= min(len(data), _MOST_TABLE_BYTES):
        return None
    table = _table(data[_PREFIX_BYTES:start])
    if table is None or start + sum(length for *_, length in table) != len(data):
        return None
    found = {}
    for name, dtype, shape, stype, length in table:
        found[name] = Array(dtype=dtype, shape=tuple(shape), stype=stype, data=data[start : start + length])
        start += length
    return ArrayRecord(found)


def _table(text: bytes) -> list[tuple[str, str, list[int], str, int]] | None:
    """Return the entries of a table in which each name stands once; None for anything else."""
    try:
        table = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(table, list) or not all(map(_is_entry, table)):
        return None
    return table if len({name for name, *_ in table}) == len(table) else None


def _is_entry(entry: object) -> bool:
    if not isinstance(entry, list) or len(entry) != 5:
        return False
    name, dtype, shape, stype, length = entry
    return (
        all(isinstance(text, str) for text in (name, dtype, stype))
        and stype != STYPE
        and isinstance(shape, list)
        and len(shape) <= _MOST_DIMENSIONS
        and all(_is_size(size) for size in (*shape, length))
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
