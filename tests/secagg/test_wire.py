"""Whatever arrives, the parsers answer with a value or with FT901, and every value has one encoding."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtune.errors import SecureAggregationError
from fedtune.secagg.identity import Identity
from fedtune.secagg.messages import Advert, Binding, Kind, Refusal, Signed, frame, open_frame
from fedtune.secagg.trips import (
    RECORD_BYTES,
    Confirmation,
    ConfirmRequest,
    MaskedAnswer,
    MaskRequest,
    OpenedShare,
    ShareRecord,
    ShareRequest,
    SharesAnswer,
    UnmaskedAnswer,
    UnmaskRequest,
)
from fedtune.secagg.wire import pack_members

H = os.urandom(32)
SETS = {"members": 11, "u2": frozenset({0, 3, 10}), "u3": frozenset({3})}
EXAMPLES = [
    Binding(
        run="run ü", round=3, attempt=2, ring_bits=32, prg="aes256ctr", corrupt_ppm=200_000, drop_ppm=1,
        base_hash=H, adapter_hash=H, config_hash=H, encoding_hash=H, roster_hash=H,
    ),
    Advert(binding=b"binding", mask_key=H, seal_key=H, audit_head=H),
    Refusal(transcript=H, code="FT905", reason="because", accused=(1, 7)),
    ShareRequest(binding=b"binding", adverts=(b"one", b"two")),
    ShareRecord(b_commitment=H, key_commitment=H, sealed=os.urandom(112)),
    SharesAnswer(transcript=H, b_commitment=H, records=os.urandom(3 * RECORD_BYTES)),
    MaskRequest(transcript=H, members=11, u2=frozenset({0, 10}), records=os.urandom(RECORD_BYTES)),
    MaskedAnswer(transcript=H, statement=os.urandom(64), masked=os.urandom(50)),
    ConfirmRequest(transcript=H, members=11, u3=frozenset({1}), statements=(os.urandom(64),)),
    Confirmation(transcript=H, **SETS),
    UnmaskRequest(transcript=H, signatures=((1, os.urandom(64)), (5, os.urandom(64)))),
    UnmaskedAnswer(
        transcript=H,
        own_b=H,
        b_shares=(OpenedShare(dealer=1, share=H, salt=os.urandom(16)),),
        key_shares=(OpenedShare(dealer=2, share=H, salt=os.urandom(16)),),
    ),
]  # fmt: skip
KINDS = [type(example) for example in EXAMPLES]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda item: type(item).__name__)
def test_what_is_encoded_is_decoded_again(example) -> None:
    assert type(example).decode(example.encode()) == example


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda item: type(item).__name__)
def test_a_missing_or_extra_byte_is_refused(example) -> None:
    encoded = example.encode()
    for wrong in (encoded[:-1], encoded + b"\0", b""):
        with pytest.raises(SecureAggregationError, match="FT901"):
            type(example).decode(wrong)


def decodes_once_or_refuses(kind, data: bytes) -> None:
    try:
        value = kind.decode(data)
    except SecureAggregationError as error:
        assert {item.code for item in error.problems} == {"FT901"}  # noqa: PT017
    else:
        assert value.encode() == data, "two encodings of one value"


@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from(KINDS), data=st.binary(max_size=400))
def test_arbitrary_bytes_never_do_anything_else(kind, data: bytes) -> None:
    decodes_once_or_refuses(kind, data)


@settings(max_examples=600, deadline=None)
@given(example=st.sampled_from(EXAMPLES), data=st.data())
def test_damaged_messages_never_do_anything_else(example, data) -> None:
    encoded = bytearray(example.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(encoded) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "huge"])):
            case "flip":
                encoded[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del encoded[at:]
                encoded += b"\0"
            case "insert":
                encoded[at:at] = data.draw(st.binary(max_size=8))
            case _:
                encoded[at : at + 8] = b"\xff" * 8
    decodes_once_or_refuses(type(example), bytes(encoded))


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=300), head=st.sampled_from([b"", b"FTSA\1", b"FTSA\1\2", b"FTSA\1\14"]))
def test_arbitrary_frames_never_do_anything_else(data: bytes, head: bytes) -> None:
    for read in (open_frame, Signed.read):
        try:
            read(head + data)
        except SecureAggregationError as error:
            assert {item.code for item in error.problems} == {"FT901"}  # noqa: PT017


def test_another_protocol_version_is_named() -> None:
    with pytest.raises(SecureAggregationError, match="speaks protocol version 9, this is version 1"):
        open_frame(b"FTSA\x09\x02")


def test_a_servers_message_is_not_taken_for_a_clients() -> None:
    with pytest.raises(SecureAggregationError, match="comes from a server and is not signed"):
        Signed.read(frame(Kind.MASK, bytes(200)))


def test_a_signed_message_of_one_kind_does_not_verify_as_another() -> None:
    identity = Identity.generate()
    made = bytearray(Signed.make(identity, Kind.CONFIRMED, b"body"))
    assert Signed.read(bytes(made)).verified()
    made[5] = Kind.UNMASKED
    assert not Signed.read(bytes(made)).verified()


def test_a_bitmap_names_members_of_its_cohort_only() -> None:
    with pytest.raises(ValueError, match="outside a cohort of 4"):
        pack_members(frozenset({4}), 4)
    encoded = Confirmation(transcript=H, members=4, u2=frozenset({1}), u3=frozenset({1})).encode()
    with pytest.raises(SecureAggregationError, match="beyond the cohort"):
        Confirmation.decode(encoded[:-1] + b"\x12")


def test_a_long_reason_is_cut_without_breaking_a_character() -> None:
    refusal = Refusal(transcript=H, code="FT905", reason="ü" * 3000)
    assert Refusal.decode(refusal.encode()).reason == "ü" * 1000


def test_bindings_name_what_differs() -> None:
    from dataclasses import replace

    binding = EXAMPLES[0]
    assert binding.differences(replace(binding, attempt=9, prg="chacha20")) == ("attempt", "prg")
