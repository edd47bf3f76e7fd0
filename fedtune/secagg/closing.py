"""When the server may close a trip, and what closing it fixes."""

from __future__ import annotations

from fedtune.errors import Problem
from fedtune.secagg.collected import AttemptRules, Cohort, Collected, Trip
from fedtune.secagg.derivation import KeySchedule, transcript_hash
from fedtune.secagg.graph import sharing_graph
from fedtune.secagg.problems import problem
from fedtune.secagg.thresholds import threshold, too_small
from fedtune.secagg.unmasking import check_lanes, missing_secrets, open_sum

__all__ = ["close_trip", "obstacles"]


def obstacles(trip: Trip, collected: Collected, rules: AttemptRules) -> list[Problem]:
    """What stands in the way of closing a trip with what has arrived; empty when nothing does."""
    if trip is Trip.ADVERTISE:
        present = len(_whole_groups(frozenset(collected.adverts), rules))
        return too_small(rules.policy, dealt=present, remaining=present, trip="U1")
    cohort = collected.cohort
    if trip is Trip.SHARE:
        dealers = _whole(frozenset(collected.shares), cohort, rules)
        return too_small(rules.policy, dealt=cohort.members, remaining=len(dealers), trip="U2")
    if trip is Trip.MASK:
        survivors = _whole(frozenset(collected.masked), cohort, rules)
        problems = too_small(rules.policy, dealt=cohort.members, remaining=len(survivors), trip="U3")
        if len(survivors) < rules.quorum:
            what = f"{len(survivors)} masked updates arrived, the coordinator wants {rules.quorum}"
            problems.append(problem("FT908", what, where="U3"))
        thinnest = cohort.graph.thin_window(survivors)
        if thinnest is not None:
            needed = cohort.graph.shape.window_survivors
            what = f"dropouts left a window of the circle with {thinnest} survivors, {needed} are needed"
            problems.append(problem("FT908", what, where="U3"))
        return problems
    if trip is Trip.CONFIRM:
        have, needed = len(collected.confirmations), max(threshold(cohort.members), rules.policy.k_min)
        if have < needed:
            return [problem("FT911", f"{have} members confirmed, {needed} are needed", where="U3")]
        return []
    needed = cohort.graph.shape.share_threshold
    return [
        problem(
            "FT908",
            f"{rules.roster.site(cohort.identities[member])}: {have} valid {kind}-shares of {needed}",
            where="U3",
        )
        for member, kind, have in missing_secrets(collected)
    ]


def close_trip(trip: Trip, collected: Collected, rules: AttemptRules) -> Trip:
    """Fix what this trip has to give (a cohort, a set, the sum) and name the next one.

    Raises:
        SecureAggregationError: FT915, the cohort could overflow the ring; FT923, FT924 as `unmasking` says.
    """
    collected.answered.clear()
    if trip is Trip.ADVERTISE:
        collected.fixed = _fix_cohort(collected, rules)
        return Trip.SHARE
    if trip is Trip.SHARE:
        collected.u2 = _whole(frozenset(collected.shares), collected.cohort, rules)
        return Trip.MASK
    if trip is Trip.MASK:
        collected.u3 = _whole(frozenset(collected.masked), collected.cohort, rules)
        for member in sorted(collected.u3 & collected.waiting.keys()):
            collected.add_masked(collected.waiting[member])
        collected.waiting.clear()
        return Trip.CONFIRM
    if trip is Trip.CONFIRM:
        return Trip.UNMASK
    total = open_sum(collected, roster=rules.roster, prg=rules.binding.prg)
    check_lanes(total, encoding=rules.encoding, roster=rules.roster)
    collected.total = total
    return Trip.DONE


def _fix_cohort(collected: Collected, rules: AttemptRules) -> Cohort:
    identities = tuple(sorted(_whole_groups(frozenset(collected.adverts), rules)))
    rules.encoding.prove_no_overflow(len(identities))
    adverts = tuple(collected.adverts[identity][0] for identity in identities)
    transcript = transcript_hash(adverts)
    graph = sharing_graph(
        transcript,
        len(identities),
        corrupt_fraction=rules.policy.corrupt_fraction,
        drop_fraction=rules.policy.drop_fraction,
    )
    return Cohort(
        identities=identities,
        index={identity: index for index, identity in enumerate(identities)},
        adverts=adverts,
        keys=tuple(collected.adverts[identity][1] for identity in identities),
        transcript=transcript,
        schedule=KeySchedule(transcript=transcript, binding=rules.binding.encode()),
        graph=graph,
        neighbours=graph.all_neighbours(),
    )


def _whole(members: frozenset[int], cohort: Cohort, rules: AttemptRules) -> frozenset[int]:
    kept = _whole_groups(frozenset(cohort.identities[index] for index in members), rules)
    return frozenset(index for index in members if cohort.identities[index] in kept)


def _whole_groups(present: frozenset[bytes], rules: AttemptRules) -> frozenset[bytes]:
    """Without the members of groups that are not there in full (So et al. 2023)."""
    if not rules.policy.groups:
        return present
    return present.difference(*(group for group in rules.roster.groups.values() if not group <= present))
