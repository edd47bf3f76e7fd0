"""One member's entry in the roster, signed by itself, and the file in which a site applies with it."""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass
from typing import Any, Final

from fedtune.errors import SecureAggregationError
from fedtune.secagg.canonical import canonical
from fedtune.secagg.fields import exactly, hex_bytes, integer, parse_json, printable, string
from fedtune.secagg.identity import IDENTITY_BYTES, SIGNATURE_BYTES, Identity, verify
from fedtune.secagg.problems import problem, refusal

__all__ = [
    "Application",
    "RosterEntry",
    "apply_for_roster",
    "entry_flaws",
    "entry_from_json",
    "fingerprint",
    "name_flaws",
    "parse_application",
    "same_fingerprint",
    "sign_entry",
    "weight_bucket",
]

_FORMAT: Final = "fedtune-roster-entry/1"
_MAX_NAME: Final = 128
_KEYS: Final = ("site", "identity", "weight", "group", "signature")


def fingerprint(value: bytes) -> str:
    """160 bits of a hash in eight groups that two operators can read to each other."""
    text = base64.b32encode(value[:20]).decode().lower()
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def same_fingerprint(typed: str, expected: str) -> bool:
    """Whether a person typed this fingerprint; case, spaces and hyphens do not matter."""
    return hmac.compare_digest(_spoken(typed), _spoken(expected))


def _spoken(text: str) -> bytes:
    """What of a fingerprint is said aloud."""
    return "".join(text.lower().replace("-", " ").split()).encode(errors="replace")


def weight_bucket(examples: int) -> int:
    """The power of two nearest below a number of examples: what a site declares instead of the number."""
    return 1 << (max(examples, 1).bit_length() - 1)


@dataclass(frozen=True, kw_only=True)
class RosterEntry:
    """One member, signed by itself.

    Attributes:
        site: Its name, for people.
        identity: Ed25519 public key, 32 bytes; its name in the protocol.
        weight: Declared weight, a power of two (see `weight_bucket`); ignored where weights are uniform.
        group: Members of one group join and leave a sum together; empty for none.
        signature: By `identity` over everything above and the federation's name.
    """

    site: str
    identity: bytes
    weight: int = 1
    group: str = ""
    signature: bytes

    def body(self, federation: str) -> bytes:
        return canonical(federation, self.site, self.identity, self.weight, self.group)

    def as_json(self) -> dict[str, str | int]:
        return {
            "site": self.site,
            "identity": self.identity.hex(),
            "weight": self.weight,
            "group": self.group,
            "signature": self.signature.hex(),
        }


def sign_entry(
    identity: Identity, *, federation: str, site: str, weight: int = 1, group: str = ""
) -> RosterEntry:
    """A site's own entry; whether it says anything impossible is checked by who takes it."""
    unsigned = RosterEntry(
        site=site, identity=identity.public, weight=weight, group=group, signature=bytes(SIGNATURE_BYTES)
    )
    signature = identity.sign("roster entry", unsigned.body(federation))
    return RosterEntry(site=site, identity=identity.public, weight=weight, group=group, signature=signature)


def name_flaws(name: str, kind: str) -> list[str]:
    """What is wrong with a name that people will read beside a fingerprint."""
    if 0 < len(name) <= _MAX_NAME and name.isprintable():
        return []
    return [f"names have 1 to {_MAX_NAME} printable characters, the {kind} is {printable(name)!r}"]


def _declared_flaws(*, site: str, weight: int, group: str) -> list[str]:
    flaws = name_flaws(site, "site") + (name_flaws(group, "group") if group else [])
    if not 1 <= weight < 2**63 or weight & (weight - 1):
        flaws.append(f"{printable(site)} declares {weight}, weights are powers of two below 2^63")
    return flaws


def entry_flaws(entry: RosterEntry, federation: str) -> list[str]:
    """Everything that is wrong with an entry by itself."""
    signed = verify(entry.identity, "roster entry", entry.body(federation), entry.signature)
    unsigned = [] if signed else [f"{printable(entry.site)} did not sign its entry"]
    return unsigned + _declared_flaws(site=entry.site, weight=entry.weight, group=entry.group)


def entry_from_json(raw: Any) -> RosterEntry:
    """The fields of an entry, not yet checked against each other.

    Raises:
        ValueError: A key is missing or too many, or a value has another form.
        TypeError: A value has another type.
    """
    exactly(raw, *_KEYS)
    return RosterEntry(
        site=string(raw["site"]),
        identity=hex_bytes(raw["identity"], IDENTITY_BYTES),
        weight=integer(raw["weight"]),
        group=string(raw["group"]),
        signature=hex_bytes(raw["signature"], SIGNATURE_BYTES),
    )


@dataclass(frozen=True, kw_only=True)
class Application:
    """What a site hands to the coordinator: its entry, and the federation that the entry is for.

    Raises:
        SecureAggregationError: FT929 with everything that is wrong with it.
    """

    federation: str
    entry: RosterEntry

    def __post_init__(self) -> None:
        _refuse(name_flaws(self.federation, "federation") + entry_flaws(self.entry, self.federation))

    def to_json(self) -> str:
        return json.dumps(
            {"format": _FORMAT, "federation": self.federation, **self.entry.as_json()}, indent=1
        )


def apply_for_roster(
    identity: Identity, *, federation: str, site: str, weight: int = 1, group: str = ""
) -> Application:
    """A site's own application for the roster.

    Raises:
        SecureAggregationError: FT929, a name or the weight is impossible; nothing was signed.
    """
    _refuse(name_flaws(federation, "federation") + _declared_flaws(site=site, weight=weight, group=group))
    entry = sign_entry(identity, federation=federation, site=site, weight=weight, group=group)
    return Application(federation=federation, entry=entry)


def parse_application(text: str | bytes) -> Application:
    """Read an application that came from outside: JSON with exactly the keys that `to_json` writes.

    Raises:
        SecureAggregationError: FT929, the text is not one or its signature is not the site's.
    """
    try:
        raw = parse_json(text)
        exactly(raw, "format", "federation", *_KEYS, form=_FORMAT)
        federation = string(raw["federation"])
        entry = entry_from_json({key: raw[key] for key in _KEYS})
    except (ValueError, TypeError) as error:
        raise refusal("FT929", f"not an entry for a roster: {error}", where="entry") from None
    return Application(federation=federation, entry=entry)


def _refuse(flaws: list[str]) -> None:
    if flaws:
        raise SecureAggregationError([problem("FT929", flaw, where="entry") for flaw in flaws])
