"""What a site asks with: its public keys and its entry for the roster, signed with both private keys.

The two signatures prove that who asks holds the keys. They do not prove who that is: two people compare the
fingerprints.
"""

from __future__ import annotations

import dataclasses
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from fedtune.errors import FederationError
from fedtune.keys import strict
from fedtune.keys.names import name_flaws
from fedtune.keys.private import point, public_from_point
from fedtune.keys.problems import problem, refusal
from fedtune.keys.storage import read_bounded
from fedtune.secagg import entry as roster_entry
from fedtune.secagg.canonical import canonical, digest
from fedtune.secagg.entry import Application, RosterEntry, entry_flaws, entry_from_json
from fedtune.secagg.fields import hex_bytes, string
from fedtune.secagg.identity import SIGNATURE_BYTES, Identity, verify

__all__ = ["REQUEST_FORMAT", "Request", "parse_request", "read_request", "sign_request"]

REQUEST_FORMAT: Final = "fedtune-enrolment-request/1"
_KEYS: Final = (
    "format",
    "federation",
    "site",
    "nonce",
    "node_key",
    "entry",
    "identity_signature",
    "node_signature",
)
_PURPOSE: Final = "enrolment request"
_NONCE_BYTES: Final = 32
_POINT_BYTES: Final = 97
_LONGEST_SIGNATURE: Final = 104
_MOST: Final = 64 * 2**10


@dataclass(frozen=True, kw_only=True)
class Request:
    """A site's request.

    Attributes:
        federation: What the site wants to belong to.
        site: Its name.
        nonce: 32 random bytes, so that no two requests are the same.
        node: Public node key, a point of P-384 in 97 bytes.
        entry: The site's own entry for the roster, with its identity.
        identity_signature: By the identity over everything above.
        node_signature: By the node key over the same, ECDSA with SHA-384 in DER.
    """

    federation: str
    site: str
    nonce: bytes
    node: bytes
    entry: RosterEntry
    identity_signature: bytes = bytes(SIGNATURE_BYTES)
    node_signature: bytes = b""

    @cached_property
    def body(self) -> bytes:
        """What is signed."""
        return strict.written(self._unsigned())

    @cached_property
    def hash(self) -> bytes:
        """What a bundle names as the request that it answers."""
        return digest(_PURPOSE, self.body)

    @property
    def node_key(self) -> ec.EllipticCurvePublicKey:
        return public_from_point(self.node)

    @property
    def application(self) -> Application:
        """The entry as `fedtune keys roster make` takes it."""
        return Application(federation=self.federation, entry=self.entry)

    def to_json(self) -> bytes:
        return strict.written(
            self._unsigned()
            | {
                "identity_signature": self.identity_signature.hex(),
                "node_signature": self.node_signature.hex(),
            }
        )

    def _unsigned(self) -> dict[str, Any]:
        return {
            "format": REQUEST_FORMAT,
            "federation": self.federation,
            "site": self.site,
            "nonce": self.nonce.hex(),
            "node_key": self.node.hex(),
            "entry": self.entry.as_json(),
        }


def sign_request(
    application: Application, *, identity: Identity, node: ec.EllipticCurvePrivateKey
) -> Request:
    """A site's request, signed with both of its keys."""
    request = Request(
        federation=application.federation,
        site=application.entry.site,
        nonce=secrets.token_bytes(_NONCE_BYTES),
        node=point(node.public_key()),
        entry=application.entry,
    )
    return dataclasses.replace(
        request,
        identity_signature=identity.sign(_PURPOSE, request.body),
        node_signature=node.sign(_signed_by_node(request), ec.ECDSA(hashes.SHA384())),
    )


def parse_request(data: bytes) -> Request:
    """Read a request that came from outside.

    Raises:
        FederationError: FT632, with everything that is wrong with it.
    """
    try:
        raw = strict.read(data, *_KEYS, form=REQUEST_FORMAT)
        request = Request(
            federation=string(raw["federation"]),
            site=string(raw["site"]),
            nonce=hex_bytes(raw["nonce"], _NONCE_BYTES),
            node=hex_bytes(raw["node_key"], _POINT_BYTES),
            entry=entry_from_json(raw["entry"]),
            identity_signature=hex_bytes(raw["identity_signature"], SIGNATURE_BYTES),
            node_signature=_signature(raw["node_signature"]),
        )
        flaws = _flaws(request)
    except (ValueError, TypeError) as error:
        said = " ".join(str(error).split())
        raise refusal("FT632", f"not a request: {said:.200}", where="request") from None
    if flaws:
        raise FederationError([problem("FT632", flaw, where="request") for flaw in flaws])
    return request


def read_request(path: Path) -> Request:
    """A request in a file.

    Raises:
        FederationError: FT632, with the file's name in each problem.
    """
    data = read_bounded(path, "FT632", "the request", most=_MOST)
    try:
        return parse_request(data)
    except FederationError as error:
        raise FederationError(
            [dataclasses.replace(each, where=str(path)) for each in error.problems]
        ) from None


def _signature(raw: Any) -> bytes:
    text = string(raw)
    if len(text) > 2 * _LONGEST_SIGNATURE:
        raise ValueError(f"a node's signature has at most {_LONGEST_SIGNATURE} bytes")
    return hex_bytes(text, len(text) // 2)


def _signed_by_node(request: Request) -> bytes:
    """Flower has the node sign other things with this key; none of them begins like this."""
    return canonical("fedtune", _PURPOSE, request.hash)


def _flaws(request: Request) -> list[str]:
    flaws = name_flaws(request.site, "site") + roster_entry.name_flaws(request.federation, "federation")
    flaws += entry_flaws(request.entry, request.federation)
    if request.entry.site != request.site:
        flaws.append("the entry for the roster is that of another site")
    if not verify(request.entry.identity, _PURPOSE, request.body, request.identity_signature):
        flaws.append("it is not signed with the identity that it names")
    try:
        request.node_key.verify(request.node_signature, _signed_by_node(request), ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        flaws.append("it is not signed with the node key that it names")
    return flaws
