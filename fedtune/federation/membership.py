"""Who takes part: sites come late, go, pause, or are refused, and each is named with its reason.

Nobody is waited for longer than ``federation.join_timeout_seconds`` and one greeting at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from flwr.app import Message

from fedtune.config.schema import Config
from fedtune.errors import FederationError, Problem
from fedtune.federation.dialogue import Dialogue, flower_failure
from fedtune.federation.wire import Failure, HelloReply, HelloRequest, content, parse_reply

__all__ = ["Membership"]

PASSING = frozenset({"FT605", "FT606", "FT641", "FT642"})
"""Why a site cannot be greeted now but may be later: Flower's own error, silence, a pause, an approval that
is awaited. Whatever else it says, it will say again."""

POLL_SECONDS = 0.1
POLL_NODES_SECONDS = 1.0
GREETING_SECONDS = 60.0
"""Most that a site which comes between rounds may take to load its model and greet. No greeting begins once
the time to wait is over, so this is also by how much that time may be overrun."""


@dataclass(kw_only=True)
class Membership:
    """The sites of one run, as far as they are there.

    Attributes:
        sites: The way to them.
        config: The whole configuration.
        expected: How many the run is made for.
        admitted: Names that may take part; None for any.
        registered: Name of each node that the coordinator enrolled; None where names are not known before a
            node says its own, as in a simulation.
        base_hash: Of the base model that earlier rounds of this run were trained on; None before the first.
        hellos: Who was greeted and belongs to the run now, by name.
        clock: Seconds of a clock that never goes back.
        sleep: Waits for some seconds.
    """

    sites: Dialogue
    config: Config
    expected: int
    admitted: frozenset[str] | None = None
    registered: Callable[[], Mapping[int, str]] | None = None
    base_hash: str | None = None
    hellos: dict[str, HelloReply] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _first: HelloReply | None = None
    _greeted: dict[int, str] = field(default_factory=dict)
    _refused: dict[int, str] = field(default_factory=dict)

    def admit(self, names: frozenset[str]) -> None:
        """Take the names that may take part from now on; who lacked one is asked again."""
        if names != self.admitted:
            self._refused = {node: code for node, code in self._refused.items() if code != "FT905"}
        self.admitted = names

    def assemble(self) -> None:
        """Greet the sites before the first round: all, or in the end as many as the contract demands.

        Raises:
            FederationError: FT604, too few sites appeared; FT607, too few agreed to take part.
        """
        wanted = self.config.federation.min_replies or max(1, self.expected)
        deadline = self._deadline()
        while True:
            appeared = self._greet(0, timeout=self._first_greeting_seconds(deadline))
            settled = len(self._greeted) + len(self._refused)
            if settled >= self.expected or self.clock() > deadline:
                break
            self.sleep(self._poll_seconds)
        self._name_the_absent(0)
        if len(self.hellos) < wanted and appeared < wanted:
            raise FederationError(
                Problem(
                    code="FT604",
                    what=f"{appeared} of {self.expected} clients appeared in "
                    f"{self.config.federation.join_timeout_seconds:g} s, {wanted} are required",
                    where="start of the federation, federation.join_timeout_seconds",
                    fix="look into the clients' logs, then run again with resume=true",
                )
            )
        self.sites.require(0, self.hellos, wanted)

    def present(self, round_number: int, *, arrived: Collection[str] = ()) -> list[str]:
        """Return who can be asked to train, once the contract can be kept or the time to wait is over.

        A site that comes between rounds is greeted, and takes part from this round on. One that is away is
        recorded as failed in this round. One that the coordinator removed leaves the run.

        Args:
            round_number: Round, from 1.
            arrived: Whose update of this round is here already; whether they are still there is no matter.

        Returns:
            Names in sorted order, those that arrived among them.
        """
        if self.registered is None:
            return sorted(self.sites.nodes)
        deadline = self._deadline()
        while True:
            self._let_go(round_number, but=arrived)
            self._greet(round_number, timeout=GREETING_SECONDS)
            online = set(self.sites.grid.get_node_ids())
            nodes = self.sites.nodes
            there = sorted({name for name, node in nodes.items() if node in online}.union(arrived))
            if len(there) >= self.wanted or self.clock() > deadline:
                break
            self.sleep(self._poll_seconds)
        for name in sorted(self.sites.nodes.keys() - set(there)):
            self.sites.fail("train", round_number, name, "FT612", "it was not connected when the round began")
        self._name_the_absent(round_number)
        return there

    @property
    def wanted(self) -> int:
        """How many sites a round waits for: as its contract demands, else all that are to be drawn."""
        federation, known = self.config.federation, len(self.sites.nodes)
        return federation.min_replies or max(1, min(federation.clients_per_round or known, known))

    def _deadline(self) -> float:
        return self.clock() + self.config.federation.join_timeout_seconds

    def _first_greeting_seconds(self, deadline: float) -> float | None:
        # In a simulation all sites load in this process, one after another.
        return None if self.registered is None else max(GREETING_SECONDS, deadline - self.clock())

    def _let_go(self, round_number: int, *, but: Collection[str]) -> None:
        """Let sites leave that the coordinator has removed, by their node or from the roster."""
        enrolled = self._names() or {}
        # A site that has another node now is greeted again, and until then it is away.
        self._greeted = {node: name for node, name in self._greeted.items() if enrolled.get(node) == name}
        belong = {name for name in enrolled.values() if self.admitted is None or name in self.admitted}
        for name in sorted(self.hellos.keys() - belong):
            del self.hellos[name]
            self.sites.nodes.pop(name, None)
            self._greeted = {node: other for node, other in self._greeted.items() if other != name}
            if name not in but:
                self.sites.fail("hello", round_number, name, "FT905", "it was removed from this federation")

    def _name_the_absent(self, round_number: int) -> None:
        """Record who is enrolled and was never there: once, until it comes."""
        enrolled = self._names() or {}
        online = set(self.sites.grid.get_node_ids()) if enrolled else set()
        for node, name in sorted(enrolled.items(), key=lambda item: item[1]):
            if name not in self.hellos and node not in self._refused and node not in online:
                self.sites.fail("hello", round_number, name, "FT612", "it has not connected to this run yet")

    def _names(self) -> Mapping[int, str] | None:
        return None if self.registered is None else self.registered()

    @property
    def _poll_seconds(self) -> float:
        return POLL_SECONDS if self.registered is None else POLL_NODES_SECONDS

    def _greet(self, round_number: int, *, timeout: float | None) -> int:
        """Ask those who were not greeted yet; returns how many nodes are there, greeted or not."""
        names = self._names()
        online = sorted(self.sites.grid.get_node_ids())
        if names is not None:
            online = [node for node in online if node in names]
        strangers = {
            (f"node {node}" if names is None else names[node]): node
            for node in online
            if node not in self._greeted and node not in self._refused
        }
        if strangers:
            self._ask(round_number, strangers, timeout=timeout)
        return len(online)

    def _ask(self, round_number: int, strangers: dict[str, int], *, timeout: float | None) -> None:
        answers: dict[str, HelloReply] = {}
        failed = len(self.sites.failures)

        def take(name: str, message: Message) -> None:
            failure = flower_failure(message)
            reply = parse_reply(message, HelloReply) if failure is None else failure
            if isinstance(reply, Failure):
                self.sites.fail("hello", round_number, name, reply.code, reply.reason)
            else:
                answers[name] = reply

        asking = dict.fromkeys(strangers, content(HelloRequest()))
        self.sites.exchange("hello", round_number, asking, take, timeout_seconds=timeout, nodes=strangers)
        for failure in self.sites.failures[failed:]:
            if failure.client in strangers and failure.code not in self._passing:
                self._refused[strangers[failure.client]] = failure.code
        for name, hello in sorted(answers.items(), key=lambda item: (item[1].site, item[0])):
            unfit = self._unfit(name, hello)
            if unfit is not None:
                self._refused[strangers[name]] = unfit[1]
                self.sites.fail("hello", round_number, *unfit)
                continue
            self._first = self._first or hello
            self.hellos[hello.site] = hello
            self._greeted[strangers[name]] = hello.site
            if hello.trains:
                self.sites.nodes[hello.site] = strangers[name]
            else:
                what = "it has no example to train on, and is left out"
                self.sites.fail("hello", round_number, hello.site, "FT611", what)

    @property
    def _passing(self) -> frozenset[str]:
        # In a simulation all virtual sites are there from the start: what fails there fails for good.
        return frozenset() if self.registered is None else PASSING

    def _unfit(self, name: str, hello: HelloReply) -> tuple[str, str, str] | None:
        """Return name, code and reason of a site that cannot be one of this federation, or of this run."""
        known = self.registered is not None  # then its key says which site it is
        if (hello.site != name) if known else (hello.site in self.hellos):
            return name, "FT602", f"it uses the name of another site, {hello.site}"
        if self.admitted is not None and hello.site not in self.admitted:
            return hello.site, "FT905", "it is not in the roster of this federation"
        if self._first is not None and _base(hello) != _base(self._first):
            what = f"its base model {_base(hello)} differs from that of {self._first.site}, "
            return hello.site, "FT603", what + _base(self._first)
        if self.base_hash is not None and hello.base_hash != self.base_hash:
            what = f"its base model {_base(hello)} differs from that of the run's earlier rounds, "
            return hello.site, "FT603", what + self.base_hash[:12]
        return None


def _base(hello: HelloReply) -> str:
    return f"{hello.base_hash[:12]} ({hello.quantization}, {hello.adapter_parameters:,} adapter parameters)"
