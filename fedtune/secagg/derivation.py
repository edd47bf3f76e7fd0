"""Every key and commitment of an attempt, each under a label and a context of its own.

HKDF-SHA256 with the transcript hash R as salt. The info string binds the protocol's version, the purpose,
the run, round, attempt, model, configuration (all in the encoded `Binding`) and the identities at both
ends, so a key of one purpose, pair, direction or attempt says nothing about another.
"""

from __future__ import annotations

from typing import Literal

from fedtune.secagg.canonical import PROTOCOL, canonical, digest
from fedtune.secagg.primitives import hkdf

__all__ = ["KeySchedule", "share_commitment", "transcript_hash"]


def transcript_hash(adverts: tuple[bytes, ...]) -> bytes:
    """R: SHA-256 of the canonical, length-prefixed adverts in the order of their senders' identities."""
    return digest("transcript", *adverts)


class KeySchedule:
    """Derives the keys of one attempt.

    Args:
        transcript: R, 32 bytes.
        binding: The encoded `Binding` that all adverts share.
    """

    def __init__(self, *, transcript: bytes, binding: bytes) -> None:
        self._salt = transcript
        self._binding = binding
        self._starts: dict[str, bytes] = {}  # of the info strings, by purpose: thousands of keys share them

    def _derive(self, secret: bytes, purpose: str, *ends: bytes) -> bytes:
        start = self._starts.get(purpose)
        if start is None:
            start = self._starts[purpose] = canonical(PROTOCOL, purpose, self._binding)
        return hkdf(secret, salt=self._salt, info=start + canonical(*ends))

    def pair_mask(self, agreed: bytes, one: bytes, other: bytes) -> bytes:
        """Key of the mask that two members share, the same from both ends."""
        return self._derive(agreed, "pair mask", *sorted((one, other)))

    def sealing(self, agreed: bytes, *, sender: bytes, receiver: bytes) -> bytes:
        """Key that seals the one message from `sender` to `receiver`."""
        return self._derive(agreed, "sealing", sender, receiver)

    def self_mask(self, b: bytes, member: bytes) -> bytes:
        """Key of a member's own mask."""
        return self._derive(b, "self mask", member)

    def b_commitment(self, b: bytes, member: bytes) -> bytes:
        """What a member publishes about its b: binding, and useless for the mask."""
        return self._derive(b, "commitment to b", member)


def share_commitment(
    kind: Literal["b", "key"], *, transcript: bytes, dealer: int, receiver: int, salt: bytes, share: bytes
) -> bytes:
    """Salted hash by which a dealer binds itself to one share."""
    return digest("share commitment", kind, transcript, dealer, receiver, salt, share)
