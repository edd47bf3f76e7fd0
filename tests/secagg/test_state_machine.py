"""Messages that are lost, late, doubled and shuffled, clients and servers that crash: what must always hold.

Hypothesis drives one federation through whatever it can think of. After every step: a client signs at most
one confirmation for one update, over one pair of sets; secrets of both kinds are never released for one
member; and if a sum opens, it is the plain sum of its cohort.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from support.secure_sum import federation, hash_of, random_update

from fedtune.errors import SecureAggregationError
from fedtune.secagg.collected import Trip
from fedtune.secagg.journal import ServerJournal
from fedtune.secagg.messages import Kind, Signed
from fedtune.secagg.rounding import encode_update
from fedtune.secagg.server import ServerAttempt
from fedtune.secagg.trips import Confirmation, UnmaskedAnswer

COUNT = 4
clients = st.integers(0, COUNT - 1)


class Turmoil(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.parties = federation(self.folder, COUNT)
        self.number = 0
        self.round = 1
        self.held_round = [1] * COUNT  # which round's update a client was last given
        self.confirmed: dict[tuple[int, int], set[bytes]] = {}
        self.released: dict[bytes, dict[int, set[str]]] = {}
        self.rng = np.random.default_rng(0)
        self.to_clients: list[tuple[int, bytes]] = []
        self.to_server: list[bytes] = []
        self.opened: list[tuple[int, frozenset[bytes]]] = []
        self.next_attempt()

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def next_attempt(self) -> None:
        self.number += 1
        self.path = self.folder / f"{self.number}.journal"
        rules = self.parties.rules(self.number)
        self.server = ServerAttempt(rules, invited=self.parties.members, journal=ServerJournal(self.path))
        self.ask()

    def ask(self) -> None:
        for identity, request in self.server.requests().items():
            self.to_clients.append((self.parties.index(identity), request))

    def answer(self, index: int, request: bytes) -> None:
        reply = self.parties.clients[index].handle(request)
        self.to_server.append(reply)
        signed = Signed.read(reply)
        if signed.kind is Kind.CONFIRMED:
            self.confirmed.setdefault((index, self.held_round[index]), set()).add(bytes(signed.body))
        if signed.kind is Kind.UNMASKED:
            answer = UnmaskedAnswer.decode(signed.body)
            kinds = self.released.setdefault(answer.transcript, {})
            for name, shares in (("b", answer.b_shares), ("key", answer.key_shares)):
                for share in shares:
                    kinds.setdefault(share.dealer, set()).add(name)

    @precondition(lambda self: self.to_clients)
    @rule(data=st.data(), keep=st.booleans())
    def deliver_a_request(self, data, keep: bool) -> None:
        """Any of those on their way, first or last; some arrive again later."""
        at = data.draw(st.integers(0, len(self.to_clients) - 1))
        index, request = self.to_clients[at] if keep else self.to_clients.pop(at)
        self.answer(index, request)

    @rule()
    def deliver_all_requests(self) -> None:
        waiting, self.to_clients = self.to_clients, []
        for index, request in waiting:
            self.answer(index, request)

    @precondition(lambda self: self.to_server)
    @rule(data=st.data(), keep=st.booleans())
    def deliver_an_answer(self, data, keep: bool) -> None:
        at = data.draw(st.integers(0, len(self.to_server) - 1))
        self.server.receive(self.to_server[at] if keep else self.to_server.pop(at))

    @rule()
    def deliver_all_answers(self) -> None:
        waiting, self.to_server = self.to_server, []
        for reply in waiting:
            self.server.receive(reply)

    @precondition(lambda self: self.to_clients or self.to_server)
    @rule(data=st.data())
    def lose_a_message(self, data) -> None:
        queue = data.draw(st.sampled_from([queue for queue in (self.to_clients, self.to_server) if queue]))
        queue.pop(data.draw(st.integers(0, len(queue) - 1)))

    @rule(index=clients, other=clients)
    def deliver_a_request_to_the_wrong_client(self, index: int, other: int) -> None:
        for receiver, request in self.to_clients:
            if receiver == index:
                self.answer(other, request)
                return

    @precondition(lambda self: isinstance(self.server.trip.value, Kind))
    @rule(trips=st.integers(1, 5))
    def complete_trips(self, trips: int) -> None:
        """What usually happens: all on their way arrive, and the trip is closed."""
        for _ in range(trips):
            self.deliver_all_requests()
            self.deliver_all_answers()
            if self.server.ready:
                self.close()

    @precondition(lambda self: self.server.ready)
    @rule()
    def close_the_trip(self) -> None:
        self.close()

    @rule()
    def close_the_trip_too_early(self) -> None:
        if isinstance(self.server.trip.value, Kind):
            self.close()

    def close(self) -> None:
        try:
            self.server.advance()
        except SecureAggregationError as error:
            assert error.problems[0].code in ("FT920", "FT921")  # noqa: PT017
            return
        if self.server.trip is Trip.DONE:
            total = self.server.result
            vector, lanes = self.parties.plain_sum(self.parties.index(item) for item in total.cohort)
            np.testing.assert_array_equal(total.vector, vector)
            np.testing.assert_array_equal(total.lanes, lanes)
            self.opened.append((self.round, frozenset(total.cohort)))
            event("a sum was opened")
        else:
            self.ask()

    @rule()
    def start_the_next_round(self) -> None:
        """New samples, new updates; whatever is on its way from the last round may still arrive."""
        self.round += 1
        parties = self.parties
        for index in range(COUNT):
            facts = parties.facts[index]
            origin = replace(facts.origin, samples=hash_of(f"samples {index} {self.round}"))
            parties.facts[index] = replace(facts, round=self.round, origin=origin)
            parties.updates[index] = encode_update(
                random_update(parties.encoding, self.rng), parties.encoding
            )
        self.held_round = [self.round] * COUNT
        parties.hold()
        self.next_attempt()

    @precondition(lambda self: self.server.trip in (Trip.FAILED, Trip.BURNT, Trip.DONE))
    @rule()
    def retry(self) -> None:
        """Even where an honest server would not: after a burnt round and after a sum."""
        self.next_attempt()

    @rule(index=clients)
    def restart_a_client(self, index: int) -> None:
        self.parties.clients[index] = self.parties.client(index)

    @rule(index=clients)
    def restart_a_client_that_trained_again(self, index: int) -> None:
        self.parties.clients[index] = self.parties.client(index)
        try:
            self.parties.hold([index])
            self.held_round[index] = self.round
        except SecureAggregationError as error:
            assert error.problems[0].code == "FT912"  # noqa: PT017

    @rule()
    def restart_the_server(self) -> None:
        before = self.server.trip, self.server.outstanding
        try:
            self.server = ServerAttempt.recover(self.path, self.parties.rules(self.number))
        except SecureAggregationError as error:
            assert error.problems[0].code in ("FT920", "FT921")  # noqa: PT017
            assert before[0] in (Trip.FAILED, Trip.BURNT)
            self.next_attempt()
            return
        assert before == (self.server.trip, self.server.outstanding) or before[0] is Trip.DONE
        self.ask() if isinstance(self.server.trip.value, Kind) else None

    @rule(seconds=st.sampled_from([1.0, 500.0, 4000.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.parties.now[0] += seconds
        for client in self.parties.clients:
            client.expire()

    @invariant()
    def one_update_is_confirmed_at_most_once(self) -> None:
        for bodies in self.confirmed.values():
            assert len(bodies) <= 1
            for body in bodies:
                Confirmation.decode(body)

    @invariant()
    def never_both_secrets_of_one_member(self) -> None:
        for dealers in self.released.values():
            assert all(len(kinds) == 1 for kinds in dealers.values())

    @invariant()
    def no_update_is_in_two_different_sums(self) -> None:
        for index in range(COUNT):
            identity = self.parties.identities[index].public
            for number in {number for number, _ in self.opened}:
                sums = {cohort for at, cohort in self.opened if at == number and identity in cohort}
                assert len(sums) <= 1


Turmoil.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_turmoil = Turmoil.TestCase
