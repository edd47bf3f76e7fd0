"""What a client checks about a proposed cohort before it shares, masks or confirms anything.

Every check collects all of its problems. The server's word is never among the inputs that a check trusts:
roster, policy, encoding and binding are the site's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from fedtune.errors import FedtuneError, Problem, SecureAggregationError
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.identity import verify
from fedtune.secagg.messages import Advert, Binding, Kind, Signed
from fedtune.secagg.policy import Policy
from fedtune.secagg.problems import problem, refusal
from fedtune.secagg.roster import Roster
from fedtune.secagg.states import Advertised, Attempt
from fedtune.secagg.thresholds import too_small
from fedtune.secagg.trips import MASKED_UNDER, masked_under

__all__ = [
    "CheckedAdverts",
    "check_adverts",
    "check_confirm_set",
    "check_mask_set",
    "check_statements",
    "split_groups",
]


@dataclass(frozen=True, kw_only=True)
class CheckedAdverts:
    """U1 after every check: identities ascending, with their public keys."""

    identities: tuple[bytes, ...]
    mask_keys: tuple[bytes, ...]
    seal_keys: tuple[bytes, ...]


def check_adverts(
    adverts: tuple[bytes, ...],
    *,
    own: Advertised,
    own_identity: bytes,
    roster: Roster,
    policy: Policy,
    encoding: Encoding,
) -> CheckedAdverts:
    """R1: U1 is a cohort that the site may share keys with (Bonawitz et al. 2017, figure 4, round 1).

    Raises:
        SecureAggregationError: FT901 an advert cannot be read; FT905 its sender is not in the pinned roster
            or did not sign it; FT906 it is about something else; FT907 an identity or key occurs twice, the
            order is wrong, or the own advert is missing or changed; FT908 the cohort is too small; FT909 a
            group is split; FT915 the sum could overflow.
    """
    problems: list[Problem] = []
    identities: list[bytes] = []
    read: list[Advert] = []
    for position, raw in enumerate(adverts):
        try:
            signed = Signed.read(raw)
            advert = Advert.decode(signed.body)
        except FedtuneError as error:
            problems += error.problems
            continue
        problems += _advert_problems(signed, advert, position=position, own=own, roster=roster)
        identities.append(signed.sender)
        read.append(advert)
    if any(later <= earlier for earlier, later in itertools.pairwise(identities)):
        problems.append(problem("FT907", "identities repeat or are not in ascending order", where="U1"))
    keys = [key for advert in read for key in (advert.mask_key, advert.seal_key)]
    if len(set(keys)) != len(keys):
        problems.append(problem("FT907", "a public key occurs twice among the adverts", where="U1"))
    if adverts.count(own.advert) != 1 or identities.count(own_identity) != 1:
        problems.append(problem("FT907", "this site's own advert is missing or was changed", where="U1"))
    problems += too_small(policy, dealt=len(adverts), remaining=len(adverts), trip="U1")
    problems += _overflow(encoding, len(adverts))
    problems += split_groups(identities, roster=roster, policy=policy, trip="U1")
    if problems:
        raise SecureAggregationError(problems)
    return CheckedAdverts(
        identities=tuple(identities),
        mask_keys=tuple(advert.mask_key for advert in read),
        seal_keys=tuple(advert.seal_key for advert in read),
    )


def _advert_problems(
    signed: Signed, advert: Advert, *, position: int, own: Advertised, roster: Roster
) -> list[Problem]:
    site = roster.site(signed.sender)
    where = f"advert {position + 1} ({site})"
    if signed.kind is not Kind.ADVERT:
        return [
            problem("FT901", f"a {signed.kind.name.lower()} message stands where adverts are", where=where)
        ]
    if signed.sender not in roster.members:
        return [problem("FT905", f"{site} is not in the roster that this site pinned", where=where)]
    if not signed.verified():
        return [problem("FT905", f"{site} did not sign this advert", where=where)]
    if advert.binding != own.encoded_binding:
        return [problem("FT906", _what_differs(site, advert.binding, own.binding), where=where)]
    return []


def _what_differs(site: str, encoded: bytes, own: Binding) -> str:
    try:
        names = Binding.decode(encoded).differences(own)
    except FedtuneError:
        return f"{site} advertised for something that cannot be read"
    return f"{site} advertised for another {', '.join(names)} than this site"


def _overflow(encoding: Encoding, members: int) -> tuple[Problem, ...]:
    try:
        encoding.prove_no_overflow(members)
    except FedtuneError as error:
        return error.problems
    return ()


def check_mask_set(
    u2: frozenset[int], members: int, *, attempt: Attempt, roster: Roster, policy: Policy
) -> None:
    """R2: self ∈ U2 ⊆ U1, |U2| ≥ max(T, k_min), groups whole (figure 4, round 2).

    Raises:
        SecureAggregationError: FT908, FT909.
    """
    problems = _set_problems(u2, members, attempt=attempt, trip="U2")
    problems += too_small(policy, dealt=attempt.members, remaining=len(u2), trip="U2")
    identities = [attempt.identities[index] for index in u2 if index < attempt.members]
    problems += split_groups(identities, roster=roster, policy=policy, trip="U2")
    if problems:
        raise SecureAggregationError(problems)


def check_confirm_set(
    u3: frozenset[int],
    members: int,
    *,
    u2: frozenset[int],
    attempt: Attempt,
    roster: Roster,
    policy: Policy,
) -> None:
    """R3: self ∈ U3 ⊆ U2, |U3| ≥ max(T, k_min), groups whole, and no window of the circle too thin.

    The last one is for cohorts above 128: an active server knows the graph before it says who dropped out,
    so without it the server could drop all neighbours of one member and read its update.

    Raises:
        SecureAggregationError: FT908, FT909.
    """
    problems = _set_problems(u3, members, attempt=attempt, trip="U3")
    if not u3 <= u2:
        problems.append(problem("FT909", f"U3 names {sorted(u3 - u2)[:10]}, who are not in U2", where="U3"))
    problems += too_small(policy, dealt=attempt.members, remaining=len(u3), trip="U3")
    identities = [attempt.identities[index] for index in u3 if index < attempt.members]
    problems += split_groups(identities, roster=roster, policy=policy, trip="U3")
    thinnest = attempt.graph.thin_window(u3)
    if thinnest is not None:
        shape = attempt.graph.shape
        problems.append(
            problem(
                "FT909",
                f"{shape.half_degree} consecutive members hold {thinnest} survivors, "
                f"{shape.window_survivors} are needed: the dropouts would cut the graph",
                where="U3",
            )
        )
    if problems:
        raise SecureAggregationError(problems)


def check_statements(
    u3: frozenset[int], statements: tuple[bytes, ...], *, u2: frozenset[int], attempt: Attempt
) -> None:
    """R3: every neighbour in U3 masked its vector for the same U2 as this site.

    T confirmations prove that most members saw the same sets, and in the complete graph that is enough:
    any two U2 of T members share honest ones, whose masks protect. In a sparse graph it is not. A server
    could show one member a U2 without its honest neighbours, leave it out of the confirmations, and have
    its b rebuilt by neighbours that saw another U2. So nobody helps to open a vector whose owner did not
    sign the U2 that the helper itself saw.

    Raises:
        SecureAggregationError: FT909 with every neighbour whose statement is about another U2.
    """
    order = sorted(u3)
    if len(statements) != len(order):
        raise refusal(
            "FT909", f"{len(statements)} statements came for {len(order)} members of U3", where="U3"
        )
    made = dict(zip(order, statements, strict=True))
    body = masked_under(attempt.transcript, attempt.members, u2)
    problems = [
        problem("FT909", f"member {peer} did not mask for the U2 that this site saw", where="U3")
        for peer in attempt.neighbours
        if peer in made and not verify(attempt.identities[peer], MASKED_UNDER, body, made[peer])
    ]
    if problems:
        raise SecureAggregationError(problems)


def _set_problems(proposed: frozenset[int], members: int, *, attempt: Attempt, trip: str) -> list[Problem]:
    problems = []
    if members != attempt.members:
        problems.append(
            problem("FT909", f"{trip} is of a cohort of {members}, not {attempt.members}", where=trip)
        )
    if attempt.own not in proposed:
        problems.append(problem("FT909", f"this site is not in {trip}", where=trip))
    return problems


def split_groups(identities: Iterable[bytes], *, roster: Roster, policy: Policy, trip: str) -> list[Problem]:
    """FT909 for every group of the roster that is in a set with some but not all of its members."""
    if not policy.groups:
        return []
    present = frozenset(identities)
    return [
        problem("FT909", f"group {name} is in {trip} with {len(group & present)} of {len(group)}", where=trip)
        for name, group in sorted(roster.groups.items())
        if 0 < len(group & present) < len(group)
    ]
