"""From the sum of masked vectors to the sum: reconstruct, verify, subtract.

Bonawitz et al. 2017, figure 4, round 4. For every member of U3 its b is needed, given by itself or rebuilt
from shares; for every member of U2 that is not in U3, its masking key. Each rebuilt secret is checked
against what its owner published, so a dealer whose shares do not fit together is found and named.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from fedtune.errors import Problem, SecureAggregationError
from fedtune.secagg.collected import Collected, SecureSum
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.masks import Mask, Prg, add_masks, pair_sign
from fedtune.secagg.primitives import Agreement, public_key
from fedtune.secagg.problems import problem
from fedtune.secagg.roster import Roster
from fedtune.secagg.shamir import reconstruct

__all__ = ["InconsistentDealers", "check_lanes", "missing_secrets", "open_sum"]


class InconsistentDealers(SecureAggregationError):
    """Members whose valid shares do not give the secret they published.

    Attributes:
        members: Their indices.
    """

    def __init__(self, problems: Iterable[Problem], members: tuple[int, ...] = ()) -> None:
        super().__init__(tuple(problems))
        self.members = members


def missing_secrets(collected: Collected) -> list[tuple[int, Literal["b", "key"], int]]:
    """Secrets that cannot be had yet: (member, kind, shares that are there)."""
    cohort, u2, u3 = collected.cohort, collected.u2, collected.u3
    needed = cohort.graph.shape.share_threshold
    missing: list[tuple[int, Literal["b", "key"], int]] = []
    for member in sorted(u3 - collected.own_b.keys()):
        have = len(collected.released["b"].get(member, {}))
        if have < needed:
            missing.append((member, "b", have))
    for member in sorted(u2 - u3):
        have = len(collected.released["key"].get(member, {}))
        # A dropped member without a survivor among its neighbours left no mask behind.
        if have < needed and u3.intersection(cohort.neighbours[member]):
            missing.append((member, "key", have))
    return missing


def open_sum(collected: Collected, *, roster: Roster, prg: Prg) -> SecureSum:
    """Remove every mask from the collected sum, in place.

    Raises:
        InconsistentDealers: FT923 with every dealer whose reconstructed secret is not the published one.
    """
    cohort, u2, u3 = collected.cohort, collected.u2, collected.u3
    threshold = cohort.graph.shape.share_threshold
    problems, convicted = [], []
    masks: list[Mask] = []
    for member in sorted(u3):
        identity = cohort.identities[member]
        b = collected.own_b.get(member)
        if b is None:
            b = reconstruct(collected.released["b"][member], threshold=threshold)
            if cohort.schedule.b_commitment(b, identity) != collected.shares[member].b_commitment:
                problems.append(_inconsistent(roster.site(identity), "its commitment to b"))
                convicted.append(member)
                continue
        masks.append(Mask(key=cohort.schedule.self_mask(b, identity), sign=-1))
    for gone in sorted(u2 - u3):
        survivors = [peer for peer in cohort.neighbours[gone] if peer in u3]
        if not survivors:
            continue
        identity = cohort.identities[gone]
        private = reconstruct(collected.released["key"][gone], threshold=threshold)
        if public_key(private) != cohort.keys[gone].mask_key:
            problems.append(_inconsistent(roster.site(identity), "the masking key it advertised"))
            convicted.append(gone)
            continue
        side = Agreement(private)
        for peer in survivors:
            agreed = side.with_peer(cohort.keys[peer].mask_key)
            key = cohort.schedule.pair_mask(agreed, identity, cohort.identities[peer])
            masks.append(Mask(key=key, sign=1 if pair_sign(peer, gone) == -1 else -1))
    if problems:
        raise InconsistentDealers(problems, tuple(convicted))
    add_masks(collected.vector, collected.lanes, masks, prg=prg)
    return SecureSum(
        vector=collected.vector,
        lanes=collected.lanes,
        cohort=tuple(cohort.identities[member] for member in sorted(u3)),
    )


def _inconsistent(site: str, published: str) -> Problem:
    return problem("FT923", f"the shares that {site} dealt do not give {published}", where=site)


def check_lanes(total: SecureSum, *, encoding: Encoding, roster: Roster) -> None:
    """The count is |U3| and the weight is what the members declared.

    Raises:
        SecureAggregationError: FT924: some member's lanes were not honest, so the sum is of no use. Whose
            they were cannot be told, which is the point of a secure sum.
    """
    declared = [
        1 if encoding.max_weight == 1 else roster.members[identity].weight for identity in total.cohort
    ]
    problems = []
    for lane, (name, expected) in enumerate((("count", len(total.cohort)), ("weight", sum(declared)))):
        if int(total.lanes[lane]) != expected:
            what = f"the {name} lane sums to {int(total.lanes[lane])}, expected {expected}"
            problems.append(problem("FT924", what, where=f"lane {name}"))
    if problems:
        raise SecureAggregationError(problems)
