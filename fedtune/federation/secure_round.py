"""The coordinator's part of a secure round: train, agree on keys, open the sum, or name what was burnt.

The first trip travels with the request to train, so a round costs four trips more than a plain one. Journals
of attempts lie in the run's folder until the round's result is on disk: a coordinator that is killed after
the point of no return finishes the attempt when it comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from flwr.app import ArrayRecord

from fedtune.config.schema import Config
from fedtune.errors import Problem, SecureAggregationError
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.secure import policy_of, round_encoding, training_hash
from fedtune.federation.secure_courier import Courier, Trained
from fedtune.federation.secure_groups import (
    GroupMean,
    beyond_bounds,
    median_of_means,
    too_few_groups,
    whole_groups,
)
from fedtune.federation.wire import TrainRequest
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import GroupDropped
from fedtune.secagg.collected import AttemptRules, Trip
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.grouped import require_groups, together
from fedtune.secagg.hashes import adapter_hash
from fedtune.secagg.identity import Identity
from fedtune.secagg.messages import Kind
from fedtune.secagg.roster import Roster, RosterEntry
from fedtune.secagg.rounding import decode_mean
from fedtune.secagg.rounds import RoundOutcome, Trips, discard_journals, journal_path, round_trips
from fedtune.secagg.server import ServerAttempt
from fedtune.secagg.spent import UpdateOrigin
from fedtune.secagg.states import RoundFacts, expected_binding
from fedtune.secagg.transcript import signed_transcript

__all__ = ["OpenedSum", "SecureCoordinator"]

_NONE = bytes(32)
_SLACK_BYTES = 1 << 20
_BYTES_A_MEMBER = 1 << 10


@dataclass(frozen=True, kw_only=True)
class OpenedSum:
    """What a round gave.

    Attributes:
        mean: Weighted mean of the clipped updates; with groups, the median of the groups' means.
        weights: Name of each site in the sum to its declared weight.
    """

    mean: Mapping[str, np.ndarray[Any, np.dtype[np.float64]]]
    weights: Mapping[str, float]


@dataclass(kw_only=True)
class SecureCoordinator:
    """Opens one sum for each round.

    Attributes:
        folder: Journals and transcripts of the run.
        latest: Reads the version of the roster that is in force.
        identity: Signs the transcripts.
        config: The whole configuration.
        spec: Names, shapes and dtype of the adapter.
    """

    folder: Path
    latest: Callable[[], Roster]
    identity: Identity
    config: Config
    spec: AdapterSpec
    roster: Roster = field(init=False)

    def __post_init__(self) -> None:
        self.renew()
        require_groups(self.roster, self.config.secagg.groups)

    def renew(self) -> None:
        """Take the version of the roster that is in force now: sites come and go between rounds.

        Raises:
            SecureAggregationError: FT918, it cannot be read.
        """
        self.roster = self.latest()

    def weight(self, name: str) -> float:
        """Return what a site weighs: 1, or what it declares in the roster."""
        weighted = self.config.aggregation.weighting == "examples"
        return float(self._entries[name].weight) if weighted else 1.0

    @property
    def smallest_sum(self) -> int | None:
        """Sites of the smallest group; None without groups."""
        sizes = [len(members) for members in self.roster.groups.values()]
        return min(sizes, default=0) if self.config.secagg.groups > 1 else None

    @property
    def names(self) -> frozenset[str]:
        """Sites of the roster."""
        return frozenset(self._entries)

    @property
    def _entries(self) -> dict[str, RosterEntry]:
        return {entry.site: entry for entry in self.roster.entries}

    def open_sum(
        self,
        sites: Dialogue,
        request: TrainRequest,
        adapter: Adapter,
        arrays: ArrayRecord,
        *,
        cohort: tuple[str, ...],
        quorum: int,
        base_hash: str,
        trained: Trained,
    ) -> OpenedSum | None:
        """Let a cohort train and open the sum of its updates, or, with groups, of each group's.

        Returns:
            The mean, or the median of the groups' means; None where the round is burnt, which is recorded.

        Raises:
            FederationError: FT607, too few sites trained.
            SecureAggregationError: FT920, no attempt succeeded and nothing was opened.
        """
        encoding = round_encoding(self.config, self.spec, request.factors, self.roster)
        origin = UpdateOrigin(
            base=bytes.fromhex(base_hash),
            adapter=adapter_hash(adapter),
            config=training_hash(self.config, request),
            samples=_NONE,
        )
        facts = RoundFacts(run=self.config.name, round=request.round, origin=origin, audit_head=_NONE)
        policy = policy_of(self.config)

        def rules(attempt: int, least: int) -> AttemptRules:
            binding = expected_binding(
                facts, encoding=encoding, policy=policy, roster=self.roster, attempt=attempt
            )
            return AttemptRules(
                binding=binding, encoding=encoding, roster=self.roster, policy=policy, quorum=least
            )

        def trips(folder: Path, invited: frozenset[bytes], least: int) -> Trips[RoundOutcome]:
            folder.mkdir(parents=True, exist_ok=True)
            return round_trips(
                rules(self._next_attempt(folder, request.round, partial(rules, least=least)), least),
                invited=invited,
                attempts=self.config.secagg.attempts,
                journals=folder,
            )

        courier = Courier(
            sites=sites,
            config=self.config,
            roster=self.roster,
            request=request,
            arrays=arrays,
            # A group that a crash interrupted is not asked again; a quorum is looked at in the end.
            quorum=quorum if self.config.secagg.groups == 1 else 1,
            trained=trained,
            most_bytes=encoding.nbytes + _SLACK_BYTES + _BYTES_A_MEMBER * len(self.roster.entries),
        )
        invited = frozenset(self._entries[name].identity for name in cohort)
        count = self.config.secagg.groups
        whole, broken = whole_groups(self.roster, invited, k_min=policy.k_min) if count > 1 else ({}, {})
        if count > 1:
            present = sum(map(len, whole.values()))
            lacking = too_few_groups(opened=len(whole), groups=count, sites=present, quorum=quorum)
            if lacking is not None:
                raise SecureAggregationError([*lacking.problems, *_problems_of(broken)])
        chosen = whole if count > 1 else {"": invited}
        started = {
            name: trips(self._folder(name), members, len(members) if name else quorum)
            for name, members in chosen.items()
        }
        opened: dict[str, GroupMean] = {}
        for name, ended in together(started, courier).items():
            if isinstance(ended, SecureAggregationError):
                broken[name] = ended
                continue
            mean = self._opened(sites, courier, ended, encoding, self._folder(name))
            if isinstance(mean, SecureAggregationError):
                broken[name] = mean
            else:
                opened[name] = mean
        return self._concluded(sites, courier, opened, broken, quorum=quorum)

    def _concluded(
        self,
        sites: Dialogue,
        courier: Courier,
        opened: Mapping[str, GroupMean],
        broken: Mapping[str, SecureAggregationError],
        *,
        quorum: int,
    ) -> OpenedSum | None:
        """Record what came of each cohort, and return what the round gives."""
        round_number = courier.request.round
        for name, error in sorted(broken.items()):
            if name:
                members = tuple(sorted(self.roster.site(each) for each in self.roster.groups[name]))
                said = [problem.what for problem in error.problems]
                reason = "; ".join(dict.fromkeys(said))
                sites.record(
                    GroupDropped(
                        round=round_number,
                        group=name,
                        clients=members,
                        code=error.problems[0].code,
                        reason=reason,
                    )
                )
        clients = tuple(sorted(client for group in opened.values() for client in group.clients))
        if not broken:
            lacking = None
        elif not opened and not any(broken):
            [lacking] = broken.values()
        else:
            count = self.config.secagg.groups
            lacking = too_few_groups(opened=len(opened), groups=count, sites=len(clients), quorum=quorum)
        if lacking is not None:
            burnt = opened or any(error.problems[0].code == "FT921" for error in broken.values())
            if not burnt:
                raise lacking
            reason = "; ".join(dict.fromkeys(problem.what for problem in lacking.problems))
            sites.record(courier.ended(reason=reason))
            return None
        sites.record(
            courier.ended(clients=clients, attempts=max(group.attempts for group in opened.values()))
        )
        mean = median_of_means([group.mean for _, group in sorted(opened.items())])
        return OpenedSum(mean=mean, weights={name: self.weight(name) for name in clients})

    def _opened(
        self, sites: Dialogue, courier: Courier, outcome: RoundOutcome, encoding: Encoding, folder: Path
    ) -> GroupMean | SecureAggregationError:
        """Return the mean of a sum; FT921 where it cannot come of clipped updates."""
        for fault in outcome.faults:
            if fault.trip is not Kind.REFUSED:  # those were recorded as they came
                found = fault.problem
                sites.fail("secagg", courier.request.round, fault.site, found.code, found.what)
        with (folder / "transcripts.jsonl").open("a", encoding="utf-8") as file:
            file.write(signed_transcript(outcome.attempt, self.identity) + "\n")
        mean = decode_mean(outcome.total.vector, outcome.total.lanes, encoding).tensors
        excess = beyond_bounds(mean, encoding)
        if excess is not None:
            return excess
        clients = tuple(sorted(self.roster.site(identity) for identity in outcome.total.cohort))
        return GroupMean(clients=clients, mean=mean, attempts=outcome.attempts)

    def _folder(self, group: str) -> Path:
        """Return where a group's journals and transcripts are."""
        return self.folder / f"group-{quote(group, safe='')}" if group else self.folder

    @staticmethod
    def _next_attempt(folder: Path, round_number: int, rules: Callable[[int], AttemptRules]) -> int:
        """Return the attempt to go on with: one that may have opened updates, else one that is new.

        An attempt that a crash interrupted before that point is given up: its members may have come back
        without their keys, and a new attempt holds everybody.

        Raises:
            SecureAggregationError: FT921, a finished attempt has burnt the round.
        """
        number = 1
        while (path := journal_path(folder, round_number=round_number, attempt=number)).exists():
            try:
                attempt = ServerAttempt.recover(path, rules(number))
            except SecureAggregationError as error:
                if error.problems[0].code == "FT921":
                    return number
            else:
                if attempt.trip in (Trip.CONFIRM, Trip.UNMASK, Trip.DONE):
                    return number
            number += 1
        return number

    def finish(self, round_number: int) -> None:
        """Forget a round's journals, now that its result is on disk and named."""
        for folder in (self.folder, *self.folder.glob("group-*")):
            discard_journals(folder, round_number=round_number)


def _problems_of(broken: Mapping[str, SecureAggregationError]) -> list[Problem]:
    return [problem for _, error in sorted(broken.items()) for problem in error.problems]
