"""Lines of an audit log: how one is made, and whether one follows from those before it.

A line is one JSON object with the keys ``v``, ``sequence``, ``time``, ``event``, ``details``, ``previous``
and ``signature``, in this order. The signature stands last and covers the very bytes before it, so that no
byte of a line can be changed, not even a space. ``previous`` is the head of the chain before the line: 32
zero bytes before the first, and after a line the hash of the head before and of the line with its signature.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from fedtune.secagg.canonical import digest
from fedtune.secagg.identity import SIGNATURE_BYTES, Identity, verify

__all__ = ["GENESIS", "BrokenLineError", "Chain", "encoded"]

GENESIS: Final = bytes(32)
"""Head of a log without lines."""

_PURPOSE: Final = "audit line"
_VERSION: Final = 1
_KEYS: Final = ["v", "sequence", "time", "event", "details", "previous"]
_SIGNATURE: Final = re.compile(rb',"signature":"([0-9a-f]{%d})"\}' % (2 * SIGNATURE_BYTES))
_SIGNATURE_LENGTH: Final = len(b',"signature":""}') + 2 * SIGNATURE_BYTES


class BrokenLineError(Exception):
    """A line that is not what stood there when it was written; holds a sentence that says how."""


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Where a log stands after a line.

    Attributes:
        signer: Public key of the log, 32 bytes.
        sequence: Number of the line; 0 before the first.
        head: Head of the chain after it, 32 bytes.
        time: When it was written, as it says; None before the first.
    """

    signer: bytes
    sequence: int = 0
    head: bytes = GENESIS
    time: str | None = None

    def after(self, line: bytes, *, check_signature: bool = True) -> Chain:
        """Return where the log stands after one more line.

        Args:
            line: Its bytes, without the newline.
            check_signature: False where that of a later line is checked: it covers the hash of this one.

        Raises:
            BrokenLineError: It is not the next line of this log.
        """
        body, signature = line[:-_SIGNATURE_LENGTH], _SIGNATURE.fullmatch(line[-_SIGNATURE_LENGTH:])
        fields = _fields(body)
        if signature is None or fields is None:
            raise BrokenLineError("is no line of an audit log")
        if check_signature and not verify(self.signer, _PURPOSE, body, bytes.fromhex(signature[1].decode())):
            raise BrokenLineError("was not signed by this key as it stands")
        if fields["sequence"] != self.sequence + 1:
            raise BrokenLineError(
                f"holds entry {fields['sequence']!r:.20}: lines were taken out, put in or moved"
            )
        if fields["previous"] != self.head.hex():
            raise BrokenLineError("does not follow from the lines before it")
        return Chain(
            signer=self.signer,
            sequence=self.sequence + 1,
            head=digest("audit line", self.head, line),
            time=str(fields["time"]),
        )


def encoded(chain: Chain, key: Identity, event: str, details: dict[str, Any], now: datetime) -> bytes:
    """Return the line that follows in a chain, without its newline.

    Raises:
        ValueError: The details hold what JSON cannot, or the time has no zone.
    """
    if now.tzinfo is None:
        raise ValueError(f"the time of a line needs its zone, got {now}")
    fields = {
        "v": _VERSION,
        "sequence": chain.sequence + 1,
        "time": now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "event": event,
        "details": details,
        "previous": chain.head.hex(),
    }
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    body = text.removesuffix("}").encode()
    return body + b',"signature":"' + key.sign(_PURPOSE, body).hex().encode() + b'"}'


def _fields(body: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(body + b"}")
    except (ValueError, RecursionError):
        return None
    right = isinstance(fields, dict) and list(fields) == _KEYS and fields["v"] == _VERSION
    return fields if right else None
