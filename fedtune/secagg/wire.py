"""Strict reading and writing of the fields that messages are made of.

Everything that arrives is hostile until it has been read to its last byte: lengths are bounded before
anything is allocated, every value has one encoding, and trailing bytes are an error. The only exception
that leaves this module is FT901.
"""

from __future__ import annotations

from typing import Final

from fedtune.secagg.problems import refusal

__all__ = ["HASH_BYTES", "MAX_MEMBERS", "Reader", "blob", "pack_members", "u8", "u32", "u64"]

HASH_BYTES: Final = 32
MAX_MEMBERS: Final = 65_535
"""Largest cohort that a message may name."""


def u8(value: int) -> bytes:
    return value.to_bytes(1, "big")


def u32(value: int) -> bytes:
    return value.to_bytes(4, "big")


def u64(value: int) -> bytes:
    return value.to_bytes(8, "big")


def blob(value: bytes) -> bytes:
    """Eight bytes of length, then the bytes."""
    return len(value).to_bytes(8, "big") + value


def pack_members(members: frozenset[int], count: int) -> bytes:
    """A set of cohort indices as a bitmap of `count` bits, lowest index in the lowest bit."""
    bits = 0
    for member in members:
        if not 0 <= member < count:
            raise ValueError(f"member {member} is outside a cohort of {count}")
        bits |= 1 << member
    return bits.to_bytes((count + 7) // 8, "little")


class Reader:
    """Reads fields off a buffer, front to back; any surprise raises FT901 with the field's name."""

    def __init__(self, data: bytes | memoryview, what: str) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._what = what

    def fail(self, field: str, why: str) -> Exception:
        return refusal("FT901", f"{self._what}: field {field!r} {why}", where=f"byte {self._at}")

    def view(self, field: str, size: int) -> memoryview:
        """The next `size` bytes, without a copy."""
        left = len(self._data) - self._at
        if size > left:
            raise self.fail(field, f"needs {size} bytes, {left} are left")
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken

    def fixed(self, field: str, size: int) -> bytes:
        return bytes(self.view(field, size))

    def number(self, field: str, size: int, *, maximum: int | None = None) -> int:
        value = int.from_bytes(self.view(field, size), "big")
        if maximum is not None and value > maximum:
            raise self.fail(field, f"is {value}, more than {maximum}")
        return value

    def blob_view(self, field: str, maximum: int) -> memoryview:
        return self.view(field, self.number(field, 8, maximum=maximum))

    def blob(self, field: str, maximum: int) -> bytes:
        return bytes(self.blob_view(field, maximum))

    def text(self, field: str, maximum: int) -> str:
        raw = self.blob(field, maximum)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail(field, "is not UTF-8") from None

    def count(self, field: str) -> int:
        return self.number(field, 4, maximum=MAX_MEMBERS)

    def members(self, field: str, count: int) -> frozenset[int]:
        """The inverse of `pack_members` for a cohort of `count`."""
        raw = self.blob(field, (MAX_MEMBERS + 7) // 8)
        if len(raw) != (count + 7) // 8:
            raise self.fail(field, f"has {len(raw)} bytes, a cohort of {count} takes {(count + 7) // 8}")
        bits = int.from_bytes(raw, "little")
        if bits >> count:
            raise self.fail(field, f"names members beyond the cohort of {count}")
        return frozenset(index for index in range(count) if bits >> index & 1)

    def end(self) -> None:
        left = len(self._data) - self._at
        if left:
            raise self.fail("end", f"is followed by {left} bytes that do not belong there")
