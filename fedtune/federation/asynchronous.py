"""The server's half of FedBuff: sites train at their own pace, and the server steps when its buffer is full.

A second loop beside `fedtune.federation.rounds`: there a round waits for its sites, here a step waits for
updates, whoever sends them. The source and the formula are in `fedtune.aggregation.buffered`.

A step is called a round in the record: rounds count the server's steps, and the adapter after step t is
version t. A site's trainings have a count of their own, by which it knows its rows, its dropout and its
optimizer's moments; so a site that trains twice while another trains once uses each of its rows in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.carrying import Carried
from fedtune.config.schema import Config
from fedtune.federation.buffer_filling import Filling
from fedtune.federation.buffer_step import BufferStep
from fedtune.federation.checkpoint import Checkpoint, save_checkpoint
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.flight import Flight
from fedtune.federation.held_out import loss_at_sites
from fedtune.federation.letters import Letters
from fedtune.federation.membership import Membership
from fedtune.federation.pace import DeployedPace, Pace, VirtualPace
from fedtune.federation.roll_call import base_of_earlier_rounds, roll_call
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import RoundFinished, RoundStarted, Split
from fedtune.observability.run_directory import RunDirectory

__all__ = ["AsynchronousFederation"]

POLL_SECONDS = 3.0
"""Between two looks for replies: as Flower's own grid and its nodes do."""


@dataclass(kw_only=True)
class AsynchronousFederation:
    """One run of steps of the server, from the seeded start or from a checkpoint.

    Guarantees:
        * An update counts at most once, in one step.
        * It never waits for ever: each site has its own deadline and is asked again at most
          ``federation.round_attempts`` times in one step, and the run stops, with the name of each who
          failed, where fewer sites are left than ``federation.min_replies`` demands.
        * In a simulation, the same seed gives the same bits, also after a kill. In a deployment the order of
          arrival decides, and a resumed run asks its sites again for what was under way.

    Attributes:
        grid: Flower's way to the clients.
        config: The whole configuration.
        run: Where events and checkpoints go.
        spec: Names, shapes and dtype of the adapter.
        aggregator: What is trained.
        expected_clients: How many clients the run is made for.
        split: What a simulation knows of the labels at each site, for the report.
        registered: Name of each node that a coordinator enrolled; None in a simulation.
        clock: Seconds of a clock that never goes back.
        sleep: Waits for some seconds.
    """

    grid: Grid
    config: Config
    run: RunDirectory
    spec: AdapterSpec
    aggregator: Aggregator
    expected_clients: int
    split: Split | None = None
    registered: Callable[[], Mapping[int, str]] | None = None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _sites: Dialogue = field(init=False)
    _members: Membership = field(init=False)
    _pace: Pace = field(init=False)
    _flight: Flight = field(init=False, default_factory=Flight)
    _adapters: dict[int, Adapter] = field(init=False, default_factory=dict)
    _carried: Carried = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        federation = self.config.federation
        timeout = federation.round_timeout_seconds
        self._sites = Dialogue(grid=self.grid, timeout_seconds=timeout, record=self.run.events.append)
        self._members = Membership(
            sites=self._sites,
            config=self.config,
            expected=self.expected_clients,
            registered=self.registered,
            clock=self.clock,
            sleep=self.sleep,
        )
        if self.config.backend.name != "deployment":
            self._pace = VirtualPace(sites=self._sites, config=self.config)
            return
        letters = Letters(grid=self.grid, timeout_seconds=timeout, clock=self.clock)
        self._pace = DeployedPace(
            sites=self._sites, letters=letters, poll_seconds=POLL_SECONDS, sleep=self.sleep
        )

    def run_steps(self, start: Checkpoint) -> Adapter:
        """Make the steps after ``start`` and return the last global adapter.

        Raises:
            FederationError: Too few clients appeared, agreed on the base model, or are left to train.
            RunError: The run directory cannot be written; complete steps are kept.
        """
        steps, every = self.config.federation.rounds, self.config.evaluation.every_rounds
        if start.round > 0:
            self._members.base_hash = base_of_earlier_rounds(self.run.events.path)
        self._members.assemble()
        self._record_sites()
        self._sites.require(0, self._sites.nodes, self.config.federation.min_replies or 1)
        if start.flight is not None:
            self._flight = self._pace.resumed(start.flight)
        self._adapters, self._carried = {**start.versions, start.round: start.adapter}, start.carried
        if start.round == 0:
            self._finish(0, evaluate=True)
        for number in range(start.round + 1, steps + 1):
            self._make_step(number)
            self._finish(number, evaluate=number == steps or (every > 0 and number % every == 0))
        return self._adapters[steps]

    def _record_sites(self) -> None:
        if self._members.hellos:
            for event in roll_call(self._members.hellos, self.split):
                self.run.events.append(event)

    def _make_step(self, number: int) -> None:
        """Fill one buffer, move the adapter, and write the checkpoint."""
        step = self._begin(number)
        while step.room > 0:
            step.require_enough()
            self._pace.advance(step, self._flight)
        done = step.filling.conclude(number)
        self._carried = done.carried
        earlier = {}
        if isinstance(self._pace, VirtualPace):  # whose sites begin when they are done
            begun = {training.version for training in self._flight.trainings.values()}
            earlier = {version: each for version, each in self._adapters.items() if version in begun}
        self._adapters = earlier | {number: done.adapter}
        self.run.events.append(done.event)
        save_checkpoint(
            self.run,
            Checkpoint(
                round=number,
                adapter=done.adapter,
                carried=done.carried,
                flight=self._flight,
                versions=earlier,
            ),
        )

    def _begin(self, number: int) -> BufferStep:
        before = set(self._members.hellos)
        there = self._members.present(number)
        if set(self._members.hellos) != before:
            self._record_sites()
        for site in sorted(self._flight.trainings.keys() - self._sites.nodes.keys()):
            self._pace.let_go(site)
            self._flight.failed(self._flight.trainings[site])
        factors = self.aggregator.factors(1)
        self.run.events.append(RoundStarted(round=number, clients=tuple(there), factors=factors))
        filling = Filling(
            config=self.config,
            method=self.aggregator,
            current=self._adapters[number - 1],
            before=self._carried,
        )
        return BufferStep(
            number=number,
            filling=filling,
            there=frozenset(there),
            wanted=self._members.wanted,
            config=self.config,
            spec=self.spec,
            aggregator=self.aggregator,
            sites=self._sites,
            flight=self._flight,
            adapters=self._adapters,
            time=lambda: self._pace.time(self._flight),
        )

    def _finish(self, number: int, *, evaluate: bool) -> None:
        adapter = self._adapters[number]
        loss = loss_at_sites(self._sites, self.config, number, adapter, {}) if evaluate else None
        reached = self._pace.time(self._flight)
        self.run.events.append(RoundFinished(round=number, held_out_loss=loss, virtual_seconds=reached))
