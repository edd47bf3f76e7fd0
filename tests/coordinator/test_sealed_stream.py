"""A sealed stream opens with its passphrase, whole and as it was written, or not at all."""

from __future__ import annotations

import io
import tracemalloc
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.coordinator.sealed_stream import (
    CHUNK_BYTES,
    OpeningReader,
    SealingWriter,
    StreamKey,
    new_key,
    read_key,
)
from fedtune.errors import FederationError

KEY = StreamKey(key=bytes(range(32)), header=b"a header")
SEALED_CHUNK = CHUNK_BYTES + 16
SIZES = st.sampled_from(
    [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 3 * CHUNK_BYTES - 5]
)


def plain(size: int) -> bytes:
    return (b"0123456789abcde" * (size // 15 + 1))[:size]


def sealed(data: bytes, *cuts: int, key: StreamKey = KEY) -> bytes:
    """The chunks of some data that is written in pieces, without the header."""
    file = io.BytesIO()
    writer = SealingWriter(file, key)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in pairwise(places):
        assert writer.write(data[start:end]) == end - start
    writer.finish()
    return file.getvalue().removeprefix(key.header)


def opened(chunks: bytes, *, key: StreamKey = KEY, step: int = 10_000) -> bytes:
    reader = OpeningReader(io.BytesIO(chunks), key, where="a file")
    return b"".join(iter(lambda: reader.read(step), b""))


def refused(chunks: bytes, key: StreamKey = KEY) -> None:
    with pytest.raises(FederationError) as caught:
        opened(chunks, key=key)
    assert caught.value.problems[0].code == "FT672"


@settings(max_examples=40)
@given(
    size=SIZES, cuts=st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=4), step=st.integers(1_000, 200_000)
)
def test_what_was_written_is_read_however_it_was_cut(size: int, cuts: list[int], step: int) -> None:
    chunks = sealed(plain(size), *cuts)
    assert chunks == sealed(plain(size)), "the pieces in which it was written do not show"
    assert opened(chunks, step=step) == plain(size)


def test_the_layout_is_the_one_that_is_described() -> None:
    data = plain(2 * CHUNK_BYTES + 7)
    chunks, rest = sealed(data), b""
    for number, last in ((0, 0), (1, 0), (2, 1)):
        chunk = chunks[number * SEALED_CHUNK : (number + 1) * SEALED_CHUNK]
        nonce = number.to_bytes(11, "big") + bytes([last])
        rest += AESGCM(KEY.key).decrypt(nonce, chunk, KEY.header)
    assert rest == data


@settings(max_examples=60)
@given(size=SIZES, data=st.data())
def test_any_change_of_a_byte_is_found(size: int, data: st.DataObject) -> None:
    chunks = bytearray(sealed(plain(size)))
    at = data.draw(st.integers(0, len(chunks) - 1))
    chunks[at] ^= data.draw(st.integers(1, 255))
    refused(bytes(chunks))


@settings(max_examples=60)
@given(size=SIZES, data=st.data())
def test_any_cut_is_found(size: int, data: st.DataObject) -> None:
    chunks = sealed(plain(size))
    edges = [edge for edge in range(0, len(chunks), SEALED_CHUNK) if edge < len(chunks)]
    refused(chunks[: data.draw(st.sampled_from(edges) | st.integers(0, len(chunks) - 1))])


@settings(max_examples=40)
@given(size=SIZES, more=st.binary(min_size=1, max_size=40) | st.just(bytes(SEALED_CHUNK)))
def test_anything_behind_the_end_is_found(size: int, more: bytes) -> None:
    refused(sealed(plain(size)) + more)


@given(order=st.lists(st.integers(0, 3), max_size=5).filter(lambda order: order != [0, 1, 2, 3]))
def test_chunks_in_another_order_missing_or_twice_are_found(order: list[int]) -> None:
    chunks = sealed(plain(3 * CHUNK_BYTES + 9))
    parts = [chunks[start : start + SEALED_CHUNK] for start in range(0, len(chunks), SEALED_CHUNK)]
    refused(b"".join(parts[number] for number in order))


def test_chunks_of_another_file_or_header_do_not_open() -> None:
    ours, theirs = (
        sealed(plain(2 * CHUNK_BYTES)),
        sealed(plain(2 * CHUNK_BYTES), key=StreamKey(key=bytes(32), header=KEY.header)),
    )
    refused(ours[:SEALED_CHUNK] + theirs[SEALED_CHUNK:])
    refused(ours, key=StreamKey(key=KEY.key, header=b"another"))


def test_an_empty_last_chunk_after_others_is_no_second_form_of_the_same_data() -> None:
    full = AESGCM(KEY.key).encrypt(bytes(12), plain(CHUNK_BYTES), KEY.header)
    empty = AESGCM(KEY.key).encrypt(bytes(10) + b"\1\1", b"", KEY.header)
    refused(full + empty)


@given(chunks=st.binary(max_size=300))
def test_noise_does_not_open(chunks: bytes) -> None:
    refused(chunks)


def test_a_passphrase_gives_a_key_that_is_this_files_alone() -> None:
    first, second = new_key(b"six random words"), new_key(b"six random words")
    assert first.key != second.key
    file = io.BytesIO(first.header + b"chunks")
    assert read_key(file, b"six random words", where="a file") == first
    assert file.read() == b"chunks"
    with pytest.raises(FederationError, match="FT671"):
        read_key(io.BytesIO(first.header), b"five random words", where="a file")


def test_a_changed_header_is_found() -> None:
    header = new_key(b"six random words").header
    for at, code in ((3, "FT672"), (20, "FT671"), (40, "FT671")):
        changed = bytearray(header)
        changed[at] ^= 1
        with pytest.raises(FederationError, match=code):
            read_key(io.BytesIO(bytes(changed)), b"six random words", where="a file")
    for short in (header[:-1], header[:20], b""):
        with pytest.raises(FederationError, match="FT672"):
            read_key(io.BytesIO(short), b"six random words", where="a file")


def test_memory_does_not_grow_with_the_file(tmp_path) -> None:
    tracemalloc.start()
    with (tmp_path / "file").open("wb") as file:
        writer = SealingWriter(file, KEY)
        for _ in range(256):
            writer.write(bytes(CHUNK_BYTES))
        writer.finish()
    with (tmp_path / "file").open("rb") as file:
        file.read(len(KEY.header))
        reader, total = OpeningReader(file, KEY, where="a file"), 0
        while part := reader.read(10_240):
            total += len(part)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == 256 * CHUNK_BYTES
    assert peak < 20 * CHUNK_BYTES
