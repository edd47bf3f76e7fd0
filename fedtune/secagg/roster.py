"""The roster: who belongs to the federation, as a hash chain of versions with self-signed entries.

The coordinator hands rosters out and authorises none: if it could enrol members, it would enrol four of
its own around one victim. Whether a site believes a version is decided in `pinning`.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.canonical import canonical, digest
from fedtune.secagg.identity import IDENTITY_BYTES, SIGNATURE_BYTES, Identity, verify
from fedtune.secagg.problems import problem, refusal
from fedtune.secagg.wire import HASH_BYTES, MAX_MEMBERS

__all__ = ["GENESIS", "Roster", "RosterEntry", "fingerprint", "parse_roster", "sign_entry", "weight_bucket"]

GENESIS: Final = bytes(HASH_BYTES)
"""The predecessor of version 1."""

_FORMAT: Final = "fedtune-roster/1"
_MAX_NAME: Final = 128
_MAX_FILE_BYTES: Final = 64 * 2**20


def fingerprint(value: bytes) -> str:
    """160 bits of a hash in eight groups that two operators can read to each other."""
    text = base64.b32encode(value[:20]).decode().lower()
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


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


def sign_entry(
    identity: Identity, *, federation: str, site: str, weight: int = 1, group: str = ""
) -> RosterEntry:
    """A site's own application for the roster."""
    unsigned = RosterEntry(
        site=site, identity=identity.public, weight=weight, group=group, signature=bytes(SIGNATURE_BYTES)
    )
    signature = identity.sign("roster entry", unsigned.body(federation))
    return RosterEntry(site=site, identity=identity.public, weight=weight, group=group, signature=signature)


@dataclass(frozen=True, kw_only=True)
class Roster:
    """One version of the roster; entries are held in the order of their identities.

    Raises:
        SecureAggregationError: FT918 with every entry that is wrong: a signature, a duplicate, a weight.
    """

    federation: str
    version: int
    previous: bytes
    entries: tuple[RosterEntry, ...]
    countersignatures: tuple[tuple[bytes, bytes], ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.entries, key=lambda entry: entry.identity))
        object.__setattr__(self, "entries", ordered)
        problems = _roster_problems(self)
        if problems:
            raise SecureAggregationError(problems)

    @cached_property
    def hash(self) -> bytes:
        """Head of the chain up to this version; countersignatures are beside it, not in it."""
        bodies = [entry.body(self.federation) + entry.signature for entry in self.entries]
        return digest("roster", self.federation, self.version, self.previous, *bodies)

    @cached_property
    def members(self) -> dict[bytes, RosterEntry]:
        return {entry.identity: entry for entry in self.entries}

    @cached_property
    def groups(self) -> dict[str, frozenset[bytes]]:
        """Group name to the identities in it."""
        names = {entry.group for entry in self.entries if entry.group}
        return {
            name: frozenset(entry.identity for entry in self.entries if entry.group == name) for name in names
        }

    def site(self, identity: bytes) -> str:
        """The member's name, or a piece of its key where it is not a member."""
        entry = self.members.get(identity)
        return entry.site if entry else f"unknown {identity.hex()[:16]}"

    def following(self, entries: tuple[RosterEntry, ...]) -> Roster:
        """The next version, with these entries."""
        return Roster(
            federation=self.federation, version=self.version + 1, previous=self.hash, entries=entries
        )

    def countersigned(self, *identities: Identity) -> Roster:
        """This version with signatures of members that vouch for it."""
        added = tuple(
            (identity.public, identity.sign("roster countersignature", self.hash)) for identity in identities
        )
        return Roster(
            federation=self.federation,
            version=self.version,
            previous=self.previous,
            entries=self.entries,
            countersignatures=self.countersignatures + added,
        )

    def vouchers(self) -> frozenset[bytes]:
        """Identities whose countersignature on this version is valid."""
        return frozenset(
            signer
            for signer, signature in self.countersignatures
            if verify(signer, "roster countersignature", self.hash, signature)
        )

    def to_json(self) -> str:
        return json.dumps(
            {
                "format": _FORMAT,
                "federation": self.federation,
                "version": self.version,
                "previous": self.previous.hex(),
                "entries": [
                    {
                        "site": entry.site,
                        "identity": entry.identity.hex(),
                        "weight": entry.weight,
                        "group": entry.group,
                        "signature": entry.signature.hex(),
                    }
                    for entry in self.entries
                ],
                "countersignatures": [
                    {"identity": signer.hex(), "signature": signature.hex()}
                    for signer, signature in self.countersignatures
                ],
            },
            indent=1,
        )


def _roster_problems(roster: Roster) -> list[Problem]:
    problems = []
    where = f"roster version {roster.version}"
    if roster.version < 1 or (roster.version == 1) != (roster.previous == GENESIS):
        problems.append(
            problem("FT918", f"version {roster.version} follows {roster.previous.hex()}", where=where)
        )
    if len(roster.entries) > MAX_MEMBERS:
        problems.append(
            problem("FT918", f"{len(roster.entries)} entries, at most {MAX_MEMBERS}", where=where)
        )
    sites = Counter(entry.site for entry in roster.entries)
    identities = Counter(entry.identity for entry in roster.entries)
    for entry in roster.entries:
        spot = f"{where}, {entry.site}"
        if not verify(entry.identity, "roster entry", entry.body(roster.federation), entry.signature):
            problems.append(problem("FT918", f"{entry.site} did not sign its entry", where=spot))
        if sites[entry.site] > 1 or identities[entry.identity] > 1:
            problems.append(problem("FT918", f"{entry.site} is there more than once", where=spot))
        if entry.weight < 1 or entry.weight & (entry.weight - 1):
            problems.append(
                problem(
                    "FT918", f"{entry.site} declares {entry.weight}, weights are powers of two", where=spot
                )
            )
        if not 0 < len(entry.site) <= _MAX_NAME or len(entry.group) > _MAX_NAME:
            problems.append(problem("FT918", f"names have 1 to {_MAX_NAME} characters", where=spot))
    return problems


def parse_roster(text: str | bytes) -> Roster:
    """Read a roster that came from outside: JSON with exactly the keys that `Roster.to_json` writes.

    Raises:
        SecureAggregationError: FT918, the text is not such a roster or an entry in it is wrong.
    """
    if len(text) > _MAX_FILE_BYTES:
        raise refusal("FT918", f"a roster of {len(text)} bytes is too large", where="roster")
    try:
        raw = json.loads(text, object_pairs_hook=_no_duplicate_keys)
        _exactly(raw, "format", "federation", "version", "previous", "entries", "countersignatures")
        _this_format(raw["format"])
        return Roster(
            federation=_string(raw["federation"]),
            version=_integer(raw["version"]),
            previous=_hex(raw["previous"], HASH_BYTES),
            entries=tuple(_entry(item) for item in _list(raw["entries"])),
            countersignatures=tuple(_countersignature(item) for item in _list(raw["countersignatures"])),
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise refusal("FT918", f"not a roster: {error}", where="roster") from None


def _this_format(raw: Any) -> None:
    if raw != _FORMAT:
        raise ValueError(f"format is {raw!r}, expected {_FORMAT!r}")


def _entry(raw: Any) -> RosterEntry:
    _exactly(raw, "site", "identity", "weight", "group", "signature")
    return RosterEntry(
        site=_string(raw["site"]),
        identity=_hex(raw["identity"], IDENTITY_BYTES),
        weight=_integer(raw["weight"]),
        group=_string(raw["group"]),
        signature=_hex(raw["signature"], SIGNATURE_BYTES),
    )


def _countersignature(raw: Any) -> tuple[bytes, bytes]:
    _exactly(raw, "identity", "signature")
    return _hex(raw["identity"], IDENTITY_BYTES), _hex(raw["signature"], SIGNATURE_BYTES)


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError(f"a key occurs twice among {keys}")
    return dict(pairs)


def _exactly(raw: Any, *keys: str) -> None:
    if not isinstance(raw, dict) or set(raw) != set(keys):
        raise ValueError(f"expected an object with the keys {list(keys)}")


def _string(raw: Any) -> str:
    if not isinstance(raw, str):
        raise TypeError(f"expected a string, got {type(raw).__name__}")
    raw.encode()  # a lone surrogate cannot be hashed
    return raw


def _integer(raw: Any) -> int:
    if type(raw) is not int or not 0 <= raw < 2**63:
        raise TypeError(f"expected a whole number, got {raw!r}")
    return raw


def _list(raw: Any) -> list[Any]:
    if not isinstance(raw, list):
        raise TypeError(f"expected a list, got {type(raw).__name__}")
    return raw


def _hex(raw: Any, size: int) -> bytes:
    value = bytes.fromhex(_string(raw))
    if len(value) != size or value.hex() != raw:
        raise ValueError(f"expected {size} bytes in lower-case hex, got {raw!r:.80}")
    return value
