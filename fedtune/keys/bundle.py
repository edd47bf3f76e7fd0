"""What a coordinator answers: whom to trust and where to connect, signed, and for one request alone."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from fedtune.errors import FederationError, SecureAggregationError
from fedtune.keys import strict
from fedtune.keys.certificates import parse_certificate, to_pem
from fedtune.keys.names import address_flaws, name_flaws
from fedtune.keys.problems import problem, refusal
from fedtune.keys.storage import read_bounded
from fedtune.secagg import entry as roster_entry
from fedtune.secagg.fields import hex_bytes, integer, string
from fedtune.secagg.identity import IDENTITY_BYTES, SIGNATURE_BYTES, Identity, verify
from fedtune.secagg.roster import Roster, parse_roster

__all__ = ["BUNDLE_FORMAT", "Bundle", "parse_bundle", "read_bundle"]

BUNDLE_FORMAT: Final = "fedtune-enrolment-bundle/1"
_KEYS: Final = (
    "format",
    "federation",
    "site",
    "server",
    "authority",
    "coordinator",
    "request",
    "issued",
    "roster",
    "signature",
)
_PURPOSE: Final = "enrolment bundle"
_HASH_BYTES: Final = 32
_LATEST: Final = 2**37
"""Seconds after 1970, in the year 6325: a date can be made of every number below."""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A coordinator's answer to one request.

    Attributes:
        federation: What the site belongs to.
        site: The name that it asked with.
        server: Where it connects, ``host:port``.
        authority: The certificate by which it knows the server.
        coordinator: Identity of who signed the bundle.
        request: `Request.hash` of the request that it answers.
        issued: When, in seconds since 1970; of two bundles the later counts.
        roster: A version for the site to look at; it is accepted apart.
        signature: By the coordinator over everything above.
    """

    federation: str
    site: str
    server: str
    authority: x509.Certificate
    coordinator: bytes
    request: bytes
    issued: int
    roster: Roster | None = None
    signature: bytes = bytes(SIGNATURE_BYTES)

    @property
    def issued_at(self) -> datetime:
        return datetime.fromtimestamp(self.issued, UTC)

    @cached_property
    def body(self) -> bytes:
        """What is signed."""
        return strict.written(self._unsigned())

    def signed(self, coordinator: Identity) -> Bundle:
        """This bundle with the signature of its coordinator."""
        return dataclasses.replace(self, signature=coordinator.sign(_PURPOSE, self.body))

    def to_json(self) -> bytes:
        return strict.written(self._unsigned() | {"signature": self.signature.hex()})

    def _unsigned(self) -> dict[str, Any]:
        return {
            "format": BUNDLE_FORMAT,
            "federation": self.federation,
            "site": self.site,
            "server": self.server,
            "authority": to_pem(self.authority).decode(),
            "coordinator": self.coordinator.hex(),
            "request": self.request.hex(),
            "issued": self.issued,
            "roster": None if self.roster is None else json.loads(self.roster.to_json()),
        }


def parse_bundle(data: bytes) -> Bundle:
    """Read a bundle that came from outside; its certificate and roster are looked at if it is signed.

    Raises:
        FederationError: FT633, with everything that is wrong with it.
    """
    try:
        raw = strict.read(data, *_KEYS, form=BUNDLE_FORMAT)
        coordinator = hex_bytes(raw["coordinator"], IDENTITY_BYTES)
        signature = hex_bytes(raw["signature"], SIGNATURE_BYTES)
        _check_signature(raw, coordinator, signature)
        bundle = Bundle(
            federation=string(raw["federation"]),
            site=string(raw["site"]),
            server=string(raw["server"]),
            authority=parse_certificate(string(raw["authority"]).encode()),
            coordinator=coordinator,
            request=hex_bytes(raw["request"], _HASH_BYTES),
            issued=integer(raw["issued"]),
            roster=None if raw["roster"] is None else parse_roster(json.dumps(raw["roster"])),
            signature=signature,
        )
    except SecureAggregationError as error:
        raise FederationError(
            [problem("FT633", each.what, where=f"bundle, {each.where}") for each in error.problems]
        ) from None
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise refusal("FT633", f"not a bundle: {said:.200}", where="bundle") from None
    flaws = _flaws(bundle, data)
    if flaws:
        raise FederationError([problem("FT633", flaw, where="bundle") for flaw in flaws])
    return bundle


def _check_signature(raw: dict[str, Any], coordinator: bytes, signature: bytes) -> None:
    body = strict.written({key: value for key, value in raw.items() if key != "signature"})
    if not verify(coordinator, _PURPOSE, body, signature):
        raise ValueError("it is not signed by the coordinator that it names")


def read_bundle(path: Path) -> Bundle:
    """A bundle in a file.

    Raises:
        FederationError: FT633, with the file's name in each problem.
    """
    data = read_bounded(path, "FT633", "the bundle")
    try:
        return parse_bundle(data)
    except FederationError as error:
        where = str(path)
        raise FederationError([dataclasses.replace(each, where=where) for each in error.problems]) from None


def _flaws(bundle: Bundle, data: bytes) -> list[str]:
    flaws = name_flaws(bundle.site, "site") + roster_entry.name_flaws(bundle.federation, "federation")
    flaws += address_flaws(bundle.server)
    if bundle.issued >= _LATEST:
        flaws.append(f"it was issued {bundle.issued} seconds after 1970")
    if bundle.roster is not None and bundle.roster.federation != bundle.federation:
        flaws.append("its roster is that of another federation")
    if bundle.to_json() != data:
        flaws.append("its certificate or roster is not written as fedtune writes it")
    return flaws
