"""The public record of an attempt, signed by the coordinator: who took part, who confirmed what, who erred.

It holds no vector, no share and no secret. Anyone with the roster can check that its members signed the
adverts and the confirmations, and so that this cohort, and no other, was opened in this round.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from fedtune.errors import FedtuneError
from fedtune.secagg.canonical import digest
from fedtune.secagg.collected import Trip
from fedtune.secagg.derivation import transcript_hash
from fedtune.secagg.identity import Identity, verify
from fedtune.secagg.messages import Kind, Signed, signature_purpose
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import Roster
from fedtune.secagg.server import ServerAttempt
from fedtune.secagg.trips import Confirmation

__all__ = ["check_transcript", "signed_transcript"]

_FORMAT: Final = "fedtune-secagg-transcript/1"


def signed_transcript(attempt: ServerAttempt, coordinator: Identity) -> str:
    """JSON of an attempt that has ended, in one line, signed by the coordinator's own key."""
    collected, binding = attempt.collected, attempt.rules.binding
    fixed = collected.fixed
    total = collected.total
    record: dict[str, Any] = {
        "format": _FORMAT,
        "run": binding.run,
        "round": binding.round,
        "attempt": binding.attempt,
        "binding": binding.encode().hex(),
        "outcome": attempt.trip.name.lower(),
        "adverts": [advert.hex() for advert in fixed.adverts] if fixed else [],
        "u2": sorted(collected.u2),
        "u3": sorted(collected.u3),
        "confirmations": {
            str(member): made.hex() for member, made in sorted(collected.confirmations.items())
        },
        "faults": [
            {
                "member": fault.member.hex(),
                "site": fault.site,
                "trip": fault.trip.name,
                "what": fault.problem.what,
            }
            for fault in collected.faults
        ],
        "sum": hashlib.sha256(total.vector.tobytes() + total.lanes.tobytes()).hexdigest() if total else None,
        "coordinator": coordinator.public.hex(),
    }
    record["signature"] = coordinator.sign("transcript", _body(record)).hex()
    return json.dumps(record, sort_keys=True)


def _body(record: dict[str, Any]) -> bytes:
    unsigned = {key: value for key, value in record.items() if key != "signature"}
    return digest("transcript record", json.dumps(unsigned, sort_keys=True))


def check_transcript(text: str, *, roster: Roster, coordinator: bytes) -> dict[str, Any]:
    """Verify every signature of a transcript and give back its record.

    Raises:
        SecureAggregationError: FT901, it is damaged or was not signed by this coordinator; FT905, an advert
            or a confirmation was not signed by the member of the roster that it names.
    """
    try:
        record = json.loads(text)
        signature = bytes.fromhex(record["signature"])
        signed_by = verify(coordinator, "transcript", _body(record), signature)
        adverts = tuple(bytes.fromhex(advert) for advert in record["adverts"])
        confirmed = {int(key): bytes.fromhex(made) for key, made in record["confirmations"].items()}
        u2, u3 = frozenset(record["u2"]), frozenset(record["u3"])
        senders = [_signer(advert, roster) for advert in adverts]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise refusal("FT901", f"not a transcript: {error!r}", where="transcript") from None
    if not signed_by or record.get("format") != _FORMAT:
        raise refusal("FT901", "the transcript was not signed by this coordinator", where="transcript")
    if confirmed:
        body = Confirmation(transcript=transcript_hash(adverts), members=len(adverts), u2=u2, u3=u3).encode()
        for member, made in confirmed.items():
            if member not in u3 or not verify(senders[member], signature_purpose(Kind.CONFIRMED), body, made):
                raise refusal("FT905", f"member {member} did not confirm these sets", where="transcript")
    return dict(record, outcome=Trip[record["outcome"].upper()].name.lower())


def _signer(advert: bytes, roster: Roster) -> bytes:
    try:
        signed = Signed.read(advert)
    except FedtuneError as error:
        raise ValueError(str(error)) from None
    if signed.sender not in roster.members or not signed.verified():
        raise refusal("FT905", f"{roster.site(signed.sender)} did not sign its advert", where="transcript")
    return signed.sender
