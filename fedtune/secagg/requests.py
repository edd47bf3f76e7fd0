"""What the server asks in each trip, from what it has collected; the same bytes whenever it asks again."""

from __future__ import annotations

from fedtune.secagg.collected import AttemptRules, Collected, Trip
from fedtune.secagg.messages import Kind, frame
from fedtune.secagg.trips import ConfirmRequest, MaskRequest, ShareRequest, UnmaskRequest

__all__ = ["asked_members", "requests_for"]


def asked_members(trip: Trip, collected: Collected, invited: frozenset[bytes]) -> frozenset[bytes]:
    """Identities that a trip's request goes to."""
    if trip is Trip.ADVERTISE:
        return invited
    if trip is Trip.SHARE:
        return frozenset(collected.cohort.identities)
    members = {
        Trip.MASK: collected.u2,
        Trip.CONFIRM: collected.u3,
        Trip.UNMASK: frozenset(collected.confirmations),
    }.get(trip, frozenset[int]())
    return frozenset(collected.cohort.identities[index] for index in members) if members else frozenset()


def requests_for(
    members: frozenset[bytes], *, trip: Trip, rules: AttemptRules, collected: Collected
) -> dict[bytes, bytes]:
    """The trip's request for each of these members, in the order of their identities."""
    if trip is Trip.MASK:
        return {identity: _mask_request(identity, collected) for identity in sorted(members)}
    if not members:
        return {}
    common = _common_request(trip, rules, collected)
    return dict.fromkeys(sorted(members), common)


def _common_request(trip: Trip, rules: AttemptRules, collected: Collected) -> bytes:
    binding = rules.binding.encode()
    if trip is Trip.ADVERTISE:
        return frame(Kind.ADVERTISE, binding)
    cohort = collected.cohort
    if trip is Trip.SHARE:
        return frame(Kind.SHARE, ShareRequest(binding=binding, adverts=cohort.adverts).encode())
    if trip is Trip.CONFIRM:
        confirm = ConfirmRequest(
            transcript=cohort.transcript,
            members=cohort.members,
            u3=collected.u3,
            statements=tuple(collected.masked[member] for member in sorted(collected.u3)),
        )
        return frame(Kind.CONFIRM, confirm.encode())
    signatures = tuple(sorted(collected.confirmations.items()))
    return frame(Kind.UNMASK, UnmaskRequest(transcript=cohort.transcript, signatures=signatures).encode())


def _mask_request(identity: bytes, collected: Collected) -> bytes:
    cohort = collected.cohort
    member = cohort.index[identity]
    records = b"".join(
        collected.shares[dealer].record(cohort.place(dealer, member))
        for dealer in cohort.neighbours[member]
        if dealer in collected.u2
    )
    request = MaskRequest(
        transcript=cohort.transcript, members=cohort.members, u2=collected.u2, records=records
    )
    return frame(Kind.MASK, request.encode())
