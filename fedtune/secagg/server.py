"""The coordinator's side of one attempt: one state machine, bytes in and bytes out.

    ADVERTISE ─▶ SHARE ─▶ MASK ─▶ CONFIRM ─▶ UNMASK ─▶ DONE
        └──────────┴───────┴─▶ FAILED (retry)   └─┴────▶ BURNT (never again)

For each trip: send `requests()`, feed every reply to `receive`, and `advance` when all have answered or the
time is up. Whatever is wrong with an answer is a `Fault` that names its sender, and the answer is left out.
Once CONFIRM requests have gone out members may have spent their updates, so a failure burns the round.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fedtune.errors import FedtuneError, SecureAggregationError
from fedtune.secagg.closing import close_trip, obstacles
from fedtune.secagg.collected import AttemptRules, Cohort, Collected, Fault, SecureSum, Trip
from fedtune.secagg.identity import IDENTITY_BYTES
from fedtune.secagg.intake import take_advert, take_confirmation, take_masked, take_shares, take_unmasked
from fedtune.secagg.journal import ANSWER, OPENED, ServerJournal, read_journal
from fedtune.secagg.journal import CLOSED as TRIP_CLOSED
from fedtune.secagg.messages import Advert, Kind, Refusal, Signed
from fedtune.secagg.problems import problem, refusal
from fedtune.secagg.requests import asked_members, requests_for
from fedtune.secagg.trips import Confirmation, MaskedAnswer, SharesAnswer, UnmaskedAnswer
from fedtune.secagg.unmasking import InconsistentDealers
from fedtune.secagg.wire import blob

__all__ = ["ServerAttempt"]


class ServerAttempt:
    """One attempt at the secure sum of one round.

    Args:
        rules: What is fixed before it starts.
        invited: Identities that are asked to take part, all of the roster.
        journal: Where everything is written down first; None keeps the attempt in memory alone.

    Raises:
        SecureAggregationError: FT905, somebody invited is not in the roster.
    """

    def __init__(
        self, rules: AttemptRules, *, invited: frozenset[bytes], journal: ServerJournal | None = None
    ) -> None:
        strangers = [identity for identity in sorted(invited) if identity not in rules.roster.members]
        if strangers:
            raise SecureAggregationError(
                [
                    problem("FT905", f"{rules.roster.site(identity)} is not in the roster", where="invited")
                    for identity in strangers
                ]
            )
        self.rules = rules
        self.invited = invited
        self.trip = Trip.ADVERTISE
        self.collected = Collected.empty(rules.encoding)
        self._journal = journal
        if journal is not None:
            journal.append(OPENED, blob(rules.binding.encode()) + b"".join(sorted(invited)), durable=True)

    @classmethod
    def recover(cls, path: Path, rules: AttemptRules) -> ServerAttempt:
        """The attempt that a journal holds, as it stood; it goes on writing to the same journal.

        Raises:
            SecureAggregationError: FT926, the journal is damaged, empty or of another attempt; FT920 or
                FT921, the attempt had ended without a sum.
        """
        records = read_journal(path)
        kind, payload = next(records, (ANSWER, b""))
        head = blob(rules.binding.encode())
        if kind != OPENED or not payload.startswith(head):
            raise refusal("FT926", "the journal is not of this attempt", where=str(path))
        names = payload[len(head) :]
        invited = frozenset(names[at : at + IDENTITY_BYTES] for at in range(0, len(names), IDENTITY_BYTES))
        attempt = cls(rules, invited=invited)
        for kind, payload in records:
            if kind == ANSWER:
                attempt.receive(payload)
            else:
                attempt.advance()
        attempt._journal = ServerJournal(path)
        return attempt

    @property
    def cohort(self) -> Cohort:
        """U1, once the adverts are in; FT902 before."""
        return self.collected.cohort

    @property
    def result(self) -> SecureSum:
        """The opened sum; FT902 while there is none."""
        if self.collected.total is None:
            raise refusal("FT902", f"there is no sum in the state {self.trip.name.lower()}")
        return self.collected.total

    @property
    def outstanding(self) -> frozenset[bytes]:
        """Members that have not answered this trip."""
        return asked_members(self.trip, self.collected, self.invited) - self.collected.answered

    @property
    def ready(self) -> bool:
        """Whether what has arrived is enough to close the trip; waiting longer may still be worth it."""
        return isinstance(self.trip.value, Kind) and not obstacles(self.trip, self.collected, self.rules)

    def requests(self) -> dict[bytes, bytes]:
        """This trip's request for every member that has not answered; the same bytes each time."""
        return requests_for(self.outstanding, trip=self.trip, rules=self.rules, collected=self.collected)

    def receive(self, data: bytes) -> Fault | None:
        """Take one answer; late, repeated and unsigned ones are ignored.

        Returns:
            The fault, if the answer failed a check; it is also kept in `collected.faults`.

        Raises:
            SecureAggregationError: FT926, the journal cannot be written.
        """
        try:
            signed = Signed.read(data)
        except FedtuneError:
            return None
        awaited = (self.trip.value, Kind.REFUSED)
        if signed.kind not in awaited or signed.sender not in self.outstanding or not signed.verified():
            return None
        if self._journal is not None:
            self._journal.append(ANSWER, data, durable=False)
        self.collected.answered.add(signed.sender)
        try:
            wrong = self._refused(signed) if signed.kind is Kind.REFUSED else self._take(signed, data)
        except FedtuneError as error:
            wrong = [item.what for item in error.problems]
        return self._fault(signed.sender, signed.kind, "; ".join(wrong)) if wrong else None

    def _fault(self, member: bytes, trip: Kind, what: str) -> Fault:
        site = self.rules.roster.site(member)
        convicted = problem("FT922", f"{site}: {what}", where=site)
        fault = Fault(member=member, site=site, trip=trip, problem=convicted)
        self.collected.faults.append(fault)
        return fault

    def _refused(self, signed: Signed) -> list[str]:
        answer = Refusal.decode(signed.body)
        cohort = self.collected.fixed
        if cohort is not None and answer.transcript == cohort.transcript and answer.accused:
            self.collected.accusations[signed.sender] = tuple(
                cohort.identities[index] for index in answer.accused if index < cohort.members
            )
        return [f"refused with {answer.code}: {answer.reason}"]

    def _take(self, signed: Signed, data: bytes) -> list[str]:
        collected, rules = self.collected, self.rules
        if self.trip is Trip.ADVERTISE:
            advert = Advert.decode(signed.body)
            take_advert(advert, binding=rules.binding, others=collected)
            collected.adverts[signed.sender] = (data, advert)
            return []
        member = collected.cohort.index[signed.sender]
        if self.trip is Trip.SHARE:
            shares = SharesAnswer.decode(signed.body)
            take_shares(shares, member=member, cohort=collected.cohort)
            collected.shares[member] = shares
        elif self.trip is Trip.MASK:
            masked = MaskedAnswer.decode(signed.body)
            take_masked(masked, sender=signed.sender, collected=collected, encoding=rules.encoding)
            collected.masked[member] = masked.statement
            if rules.policy.groups and rules.roster.members[signed.sender].group:
                collected.waiting[member] = bytes(masked.masked)
            else:
                collected.add_masked(masked.masked)
        elif self.trip is Trip.CONFIRM:
            take_confirmation(Confirmation.decode(signed.body), collected=collected)
            collected.confirmations[member] = signed.signature
        else:
            return take_unmasked(UnmaskedAnswer.decode(signed.body), member=member, collected=collected)
        return []

    def advance(self) -> None:
        """Close the trip with what has arrived.

        Raises:
            SecureAggregationError: The first problem is FT920, the attempt has failed and may be retried,
                or FT921, the round is burnt; those after it say why: FT908 or FT911, too few members; FT915
                the cohort overflows; FT923, a dealer was inconsistent; FT924, the lanes do not add up.
        """
        if not isinstance(self.trip.value, Kind):
            raise refusal("FT902", f"an attempt that is {self.trip.name.lower()} cannot advance")
        if self._journal is not None:
            self._journal.append(TRIP_CLOSED, self.trip.name.encode(), durable=True)
        problems = obstacles(self.trip, self.collected, self.rules)
        if problems:
            raise self._ended(SecureAggregationError(problems))
        try:
            self.trip = close_trip(self.trip, self.collected, self.rules)
        except FedtuneError as error:
            raise self._ended(error) from None

    def _ended(self, error: FedtuneError) -> SecureAggregationError:
        closed = self.trip
        burnt = closed in (Trip.CONFIRM, Trip.UNMASK)
        self.trip = Trip.BURNT if burnt else Trip.FAILED
        if isinstance(error, InconsistentDealers):
            for member in error.members:
                identity = self.collected.cohort.identities[member]
                self._fault(identity, Kind.SHARES, "dealt shares that do not fit together")
        binding = self.rules.binding
        where = f"run {binding.run}, round {binding.round}, attempt {binding.attempt}"
        consequence = (
            "the round is burnt, for members may have opened their updates"
            if burnt
            else "nothing was opened, and the attempt may be retried"
        )
        what = f"the trip {closed.name.lower()} could not be closed: {consequence}"
        return SecureAggregationError(
            [problem("FT921" if burnt else "FT920", what, where=where), *error.problems]
        )

    def suspects(self) -> frozenset[bytes]:
        """Members to leave out of a retry.

        Those whose own answer failed a check; dealers accused by more members than may collude; and of a
        dealer with fewer accusers, both sides, because one of them is lying and which cannot be told.
        """
        refused = {fault.member for fault in self.collected.faults if fault.trip is Kind.REFUSED}
        convicted = {fault.member for fault in self.collected.faults} - refused
        accusers = self.collected.accusations
        votes = Counter(dealer for accused in accusers.values() for dealer in set(accused))
        certain = {
            dealer for dealer, count in votes.items() if count > max(1, self.rules.policy.max_colluders)
        }
        disputed = set(votes) - certain
        quarrelling = {member for member, accused in accusers.items() if disputed & set(accused)}
        return frozenset(convicted | certain | disputed | quarrelling)
