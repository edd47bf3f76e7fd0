"""A site's side of secure aggregation: one state machine, bytes in and bytes out.

The life of one round: `hold` the encoded update after training; `handle` the server's request of each trip.
A request in the wrong state is refused and changes nothing. A request that fails a check ends the attempt:
its keys are dropped, and the update stays for another attempt unless this site has confirmed a sum, after
which the update is spent. The last request answered, if it comes again byte for byte, gets the same answer.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from fedtune.errors import FedtuneError, Problem
from fedtune.secagg.checks import check_adverts, check_confirm_set, check_mask_set, check_statements
from fedtune.secagg.cohorts import CohortLog
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.identity import Identity
from fedtune.secagg.messages import Binding, Kind, Refusal, Signed, open_frame
from fedtune.secagg.policy import Policy
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import Roster
from fedtune.secagg.rounding import EncodedUpdate
from fedtune.secagg.spent import SpentJournal
from fedtune.secagg.states import (
    Advertised,
    Confirmed,
    Held,
    Idle,
    Masked,
    Opened,
    RoundFacts,
    Shared,
    State,
    expected_binding,
)
from fedtune.secagg.steps import BadShares, advertise, confirmed_by, mask, share, unmask
from fedtune.secagg.thresholds import threshold
from fedtune.secagg.trips import Confirmation, ConfirmRequest, MaskRequest, ShareRequest, UnmaskRequest

__all__ = ["SecureAggregationClient"]

logger = logging.getLogger(__name__)

_S = TypeVar("_S", Advertised, Shared, Masked, Confirmed)
_NO_TRANSCRIPT: Final = bytes(32)


class SecureAggregationClient:
    """One site in one round at a time.

    Args:
        identity: The site's lasting Ed25519 key.
        policy: The site's own conditions.
        roster: The version that the site pinned, with itself in it.
        spent: The site's journal of opened updates.
        cohorts: The site's log of sums; its warnings are logged and collected in `warnings`.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        *,
        identity: Identity,
        policy: Policy,
        roster: Roster,
        spent: SpentJournal,
        cohorts: CohortLog,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._identity = identity
        self._policy = policy
        self._roster = roster
        self._spent = spent
        self._cohorts = cohorts
        self._clock = clock
        self.warnings: list[Problem] = []
        self._clear()

    def __repr__(self) -> str:
        return f"SecureAggregationClient({self._identity!r}, {type(self._state).__name__})"

    def _clear(self) -> None:
        self._state: State = Idle()
        self._held: Held | None = None
        self._held_until = 0.0
        self._attempt_until = 0.0
        self._attempt = 0
        self._expired = False
        self._answered: tuple[bytes, bytes] | None = None

    @property
    def state(self) -> str:
        """Name of the state, for a log."""
        return type(self._state).__name__

    def hold(self, update: EncodedUpdate, encoding: Encoding, facts: RoundFacts) -> None:
        """Keep a round's encoded update until it is opened or expires; drops whatever was held before.

        Raises:
            SecureAggregationError: FT912, an update of this origin was opened before; FT914, it was encoded
                by other rules.
        """
        self._clear()
        if update.encoding_hash != encoding.hash:
            raise refusal("FT914", "the update was encoded by other rules than the round's", where="update")
        member = self._roster.members.get(self._identity.public)
        declared = 1 if encoding.max_weight == 1 or member is None else member.weight
        if int(update.lanes[1]) != declared:
            raise refusal("FT914", f"the update has weight {update.lanes[1]}, the roster says {declared}")
        self._spent.check(facts.spent_as)
        self._held = Held(facts=facts, encoding=encoding, update=update)
        self._state = self._held
        self._held_until = self._clock() + self._policy.hold_seconds

    def holds(self, facts: RoundFacts) -> bool:
        """Whether the update of this round is kept here, so that it need not be made again."""
        self.expire()
        held = self._held
        return held is not None and (held.facts.run, held.facts.round, held.facts.origin) == (
            facts.run,
            facts.round,
            facts.origin,
        )

    def forget(self) -> None:
        """Drop every secret now, as after a restart."""
        self._clear()

    def expire(self) -> None:
        """Drop what has outlived its time; `handle` does it first, a daemon calls it from time to time."""
        now = self._clock()
        if isinstance(self._state, Idle):
            return
        if now >= self._held_until:
            self._clear()
            self._expired = True
        elif self._attempt_until and now >= self._attempt_until:
            self._end_attempt()
            self._expired = True

    def handle(self, request: bytes) -> bytes:
        """Answer a request; whatever is wrong with it becomes a signed refusal with its code and reason."""
        try:
            return self.answer(request)
        except FedtuneError as error:
            first = error.problems[0]
            reason = "; ".join(dict.fromkeys(f"{item.what} ({item.code})" for item in error.problems))
            body = Refusal(
                transcript=self._refused_transcript(request),
                code=first.code,
                reason=reason,
                accused=error.accused if isinstance(error, BadShares) else (),
            )
            return Signed.make(self._identity, Kind.REFUSED, body.encode())

    @staticmethod
    def _refused_transcript(request: bytes) -> bytes:
        """R as the request names it, so that the server knows which attempt the refusal is about."""
        try:
            kind, body = open_frame(request)
        except FedtuneError:
            return _NO_TRANSCRIPT
        if kind in (Kind.MASK, Kind.CONFIRM, Kind.UNMASK) and len(body) >= len(_NO_TRANSCRIPT):
            return bytes(body[: len(_NO_TRANSCRIPT)])
        return _NO_TRANSCRIPT

    def answer(self, request: bytes) -> bytes:
        """The signed answer to a request.

        Raises:
            SecureAggregationError: FT901 unreadable; FT902 out of order; FT903 nothing is held (a client
                that was restarted); FT904 expired; otherwise the check of the trip that failed.
        """
        self.expire()
        asked = hashlib.sha256(request).digest()
        if self._answered is not None and self._answered[0] == asked:
            return self._answered[1]
        kind, body = open_frame(request)
        if self._held is None and not isinstance(self._state, (Confirmed, Opened)):
            raise self._nothing_held()
        step = {
            Kind.ADVERTISE: self._advertise,
            Kind.SHARE: self._share,
            Kind.MASK: self._mask,
            Kind.CONFIRM: self._confirm,
            Kind.UNMASK: self._unmask,
        }.get(kind)
        if step is None:
            raise refusal("FT902", f"a {kind.name.lower()} message is a client's answer, not a request")
        answer = step(body)
        self._answered = (asked, answer)
        return answer

    def _nothing_held(self) -> FedtuneError:
        if self._expired:
            return refusal("FT904", "the round has expired at this site")
        return refusal("FT903", "no state: this site holds no update for a round")

    def _require(self, kind: type[_S], trip: Kind) -> _S:
        if isinstance(self._state, kind):
            return self._state
        if isinstance(self._state, Opened) and trip is Kind.UNMASK:
            raise refusal("FT913", "this round was unmasked once, at another request")
        if self._expired:
            raise refusal("FT904", "the attempt has expired at this site")
        raise refusal("FT902", f"a {trip.name.lower()} request came in the state {self.state}")

    def _end_attempt(self) -> None:
        """Drop the attempt's keys; what comes next depends on whether the update is spent."""
        self._attempt_until = 0.0
        self._answered = None
        if self._held is not None:
            self._state = self._held
        else:
            self._state = Idle()

    @contextmanager
    def _ending_on_failure(self) -> Iterator[None]:
        """A check that fails ends the attempt; nothing of it is kept for another try."""
        try:
            yield
        except FedtuneError:
            self._end_attempt()
            raise

    # R0: AdvertiseKeys
    def _advertise(self, body: memoryview) -> bytes:
        held = self._held
        if held is None:
            raise refusal("FT902", "this site has confirmed a sum for the round: its update is spent")
        asked = Binding.decode(body)
        expected = expected_binding(
            held.facts,
            encoding=held.encoding,
            policy=self._policy,
            roster=self._roster,
            attempt=asked.attempt,
        )
        different = asked.differences(expected)
        if different:
            raise refusal("FT906", f"the server asks for another {', '.join(different)} than this site knows")
        if asked.attempt <= self._attempt:
            raise refusal("FT902", f"attempt {asked.attempt} is over, the last one was {self._attempt}")
        self._spent.check(held.facts.spent_as)
        self._state = advertise(expected, audit_head=held.facts.audit_head, identity=self._identity)
        self._attempt = asked.attempt
        self._attempt_until = self._clock() + self._policy.attempt_seconds
        self._expired = False
        return self._state.advert

    # R1: ShareKeys
    def _share(self, body: memoryview) -> bytes:
        state = self._require(Advertised, Kind.SHARE)
        request = ShareRequest.decode(body)
        if request.binding != state.encoded_binding:
            raise refusal("FT902", "a share request of another attempt came")
        with self._ending_on_failure():
            checked = check_adverts(
                request.adverts,
                own=state,
                own_identity=self._identity.public,
                roster=self._roster,
                policy=self._policy,
                encoding=self._holding().encoding,
            )
            self._state, answer = share(
                state, request.adverts, checked, own=self._identity.public, policy=self._policy
            )
        return Signed.make(self._identity, Kind.SHARES, answer.encode())

    # R2: MaskedInputCollection
    def _mask(self, body: memoryview) -> bytes:
        state = self._require(Shared, Kind.MASK)
        request = MaskRequest.decode(body)
        self._same_transcript(request.transcript, state.attempt.transcript)
        with self._ending_on_failure():
            check_mask_set(
                request.u2,
                request.members,
                attempt=state.attempt,
                roster=self._roster,
                policy=self._policy,
            )
            self._state, answer = mask(state, request, self._holding().update, identity=self._identity)
        return Signed.make(self._identity, Kind.MASKED, answer.encode())

    # R3: ConsistencyCheck, and the point of no return
    def _confirm(self, body: memoryview) -> bytes:
        state = self._require(Masked, Kind.CONFIRM)
        request = ConfirmRequest.decode(body)
        attempt = state.attempt
        self._same_transcript(request.transcript, attempt.transcript)
        facts = self._holding().facts
        with self._ending_on_failure():
            check_confirm_set(
                request.u3,
                request.members,
                u2=state.u2,
                attempt=attempt,
                roster=self._roster,
                policy=self._policy,
            )
            check_statements(request.u3, request.statements, u2=state.u2, attempt=attempt)
            cohort = frozenset(attempt.identities[index] for index in request.u3)
            found = self._cohorts.record(cohort, run=facts.run, round_number=facts.round, roster=self._roster)
            for warning in found:
                logger.warning("%s", warning)
            self.warnings += found
            # On disk before anything is signed: a crash in between costs the round, never the update.
            self._spent.spend(
                facts.spent_as, run=facts.run, round_number=facts.round, attempt=attempt.binding.attempt
            )
        self._held = None
        self._state = Confirmed(attempt=attempt, u2=state.u2, u3=request.u3, b=state.b, dealt=state.dealt)
        confirmation = Confirmation(
            transcript=attempt.transcript, members=attempt.members, u2=state.u2, u3=request.u3
        )
        return Signed.make(self._identity, Kind.CONFIRMED, confirmation.encode())

    # R4: Unmasking
    def _unmask(self, body: memoryview) -> bytes:
        state = self._require(Confirmed, Kind.UNMASK)
        request = UnmaskRequest.decode(body)
        self._same_transcript(request.transcript, state.attempt.transcript)
        needed = max(threshold(state.attempt.members), self._policy.k_min)
        with self._ending_on_failure():
            confirmed_by(state, request.signatures, needed=needed)
        answer = unmask(state)
        self._state = Opened(transcript=state.attempt.transcript)
        return Signed.make(self._identity, Kind.UNMASKED, answer.encode())

    def _holding(self) -> Held:
        if self._held is None:
            raise self._nothing_held()
        return self._held

    @staticmethod
    def _same_transcript(got: bytes, expected: bytes) -> None:
        if got != expected:
            raise refusal("FT902", "a request of another attempt or another cohort came")
