"""Who takes part: sites come late, go, pause, or are refused, and each is named with its reason.

Nobody is waited for longer than ``federation.join_timeout_seconds`` at a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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
GREETING_SECONDS = 60.0
"""Most that a site which comes between rounds may take to load its model and greet."""


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
        hellos: Who was greeted, by name.
    """

    sites: Dialogue
    config: Config
    expected: int
    admitted: frozenset[str] | None = None
    registered: Callable[[], Mapping[int, str]] | None = None
    hellos: dict[str, HelloReply] = field(default_factory=dict)
    _greeted: set[int] = field(default_factory=set)
    _refused: set[int] = field(default_factory=set)

    def assemble(self) -> None:
        """Greet the sites before the first round: all, or in the end as many as the contract demands.

        Raises:
            FederationError: FT604, too few sites appeared; FT607, too few agreed to take part.
        """
        wanted = self.config.federation.min_replies or self.expected
        deadline = time.monotonic() + self.config.federation.join_timeout_seconds
        while True:
            appeared = self._greet(0, timeout=None)
            settled = len(self._greeted) + len(self._refused)
            if settled >= self.expected or time.monotonic() > deadline:
                break
            time.sleep(self._poll_seconds)
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
        self.sites.require(0, len(self.hellos), wanted)

    def present(self, round_number: int, *, wanted: int) -> list[str]:
        """Return who can be asked to train, once the contract can be kept or the time to wait is over.

        A site that comes between rounds is greeted, and takes part from this round on. One that is away is
        recorded as failed in this round.

        Args:
            round_number: Round, from 1.
            wanted: How many are required.
        """
        if self.registered is None:
            return sorted(self.sites.nodes)
        deadline = time.monotonic() + self.config.federation.join_timeout_seconds
        while True:
            self._greet(round_number, timeout=GREETING_SECONDS)
            online = set(self.sites.grid.get_node_ids())
            there = sorted(name for name, node in self.sites.nodes.items() if node in online)
            if len(there) >= wanted or time.monotonic() > deadline:
                break
            time.sleep(self._poll_seconds)
        for name in sorted(self.sites.nodes.keys() - set(there)):
            self.sites.fail("train", round_number, name, "FT612", "it was not connected when the round began")
        return there

    @property
    def _poll_seconds(self) -> float:
        return POLL_SECONDS if self.registered is None else 1.0

    def _greet(self, round_number: int, *, timeout: float | None) -> int:
        """Ask those who were not greeted yet; returns how many nodes are there, greeted or not."""
        names = None if self.registered is None else self.registered()
        online = sorted(self.sites.grid.get_node_ids())
        if names is not None:
            online = [node for node in online if node in names]
        strangers = {
            (f"node {node}" if names is None else names[node]): node
            for node in online
            if node not in self._greeted | self._refused
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
                self._refused.add(strangers[failure.client])
        for name, hello in sorted(answers.items(), key=lambda item: (item[1].site, item[0])):
            unfit = self._unfit(name, hello)
            if unfit is not None:
                self._refused.add(strangers[name])
                self.sites.fail("hello", round_number, *unfit)
                continue
            self.hellos[hello.site] = hello
            self._greeted.add(strangers[name])
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
        first = next((self.hellos[site] for site in sorted(self.hellos)), None)
        if hello.site in self.hellos or (self.registered is not None and hello.site != name):
            return name, "FT602", f"it uses the name of another site, {hello.site}"
        if self.admitted is not None and hello.site not in self.admitted:
            return hello.site, "FT905", "it is not in the roster of this federation"
        if first is not None and _base(hello) != _base(first):
            what = f"its base model {_base(hello)} differs from that of {first.site}, {_base(first)}"
            return hello.site, "FT603", what
        return None


def _base(hello: HelloReply) -> str:
    return f"{hello.base_hash[:12]} ({hello.quantization}, {hello.adapter_parameters:,} adapter parameters)"
