"""The server's half of the federation: the round loop over a Flower grid.

Federated averaging (McMahan et al. 2017, Algorithm 1) with the trained factors, the aggregation and its
weights as configured. Flower's own `Strategy.start` can neither resume nor name who failed; the loop is ours,
over `Grid.send_and_receive`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.carrying import Carried
from fedtune.aggregation.control import as_controls
from fedtune.config.derived import is_fit
from fedtune.config.schema import Config
from fedtune.errors import FederationError, SecureAggregationError, UpdateError
from fedtune.federation.checkpoint import Checkpoint, save_checkpoint
from fedtune.federation.clustered_sum import ClusteredSum, ClusteringSum, begin_sum, makes_clusters
from fedtune.federation.controls import read_controls, with_controls
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.downlink import downlink, downlink_to_train
from fedtune.federation.fine_tuning import fine_tune_at_sites
from fedtune.federation.fit_round import FitCohort, fit_cohort
from fedtune.federation.gate import Gate, ServerRows, median_loss
from fedtune.federation.held_out import losses_at_sites, mean_loss
from fedtune.federation.membership import Membership
from fedtune.federation.plain_sum import PlainSum
from fedtune.federation.replies import require_own, trained, weight_of
from fedtune.federation.requests import train_request
from fedtune.federation.roll_call import base_of_earlier_rounds, roll_call
from fedtune.federation.round_sum import RoundSum
from fedtune.federation.sampling import sample_clients
from fedtune.federation.secure import policy_of
from fedtune.federation.secure_round import OpenedSum, SecureCoordinator
from fedtune.federation.speed import RoundClock
from fedtune.federation.uplink import read_uplink, uplink_spec
from fedtune.federation.wire import TrainReply, TrainRequest, arrays_of
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import (
    QuorumMissed,
    RoundFinished,
    RoundStarted,
    SecurePromise,
    Split,
    effective_events,
    read_events,
)
from fedtune.observability.run_directory import RunDirectory
from fedtune.secagg.promise import promise
from fedtune.training.delta import Delta
from fedtune.updates.codec import to_arrays, wire_bytes
from fedtune.updates.decode import decode

__all__ = ["Federation"]


@dataclass(kw_only=True)
class Federation:
    """One run of rounds, from the seeded start or from a checkpoint.

    Attributes:
        grid: Flower's way to the clients.
        config: The whole configuration.
        run: Where events and checkpoints go.
        spec: Names, shapes and dtype of the adapter.
        aggregator: What is trained in a round and how deltas become the next adapter.
        expected_clients: How many clients the run is made for.
        split: What a simulation knows of the labels at each site, for the report.
        secure: Opens the sum of a round's updates instead of receiving each; None in a plain run.
        registered: Name of each node that a coordinator enrolled; None in a simulation.
    """

    grid: Grid
    config: Config
    run: RunDirectory
    spec: AdapterSpec
    aggregator: Aggregator
    expected_clients: int
    split: Split | None = None
    secure: SecureCoordinator | None = None
    registered: Callable[[], Mapping[int, str]] | None = None
    _sites: Dialogue = field(init=False)
    _members: Membership = field(init=False)
    _base_hash: str = field(init=False, default="")
    _carried: Carried = field(init=False, default_factory=dict)
    _clock: RoundClock = field(init=False)
    _gate: Gate | None = field(init=False)
    _measured: tuple[int, Adapter | None, dict[str, float]] = field(init=False, default=(0, None, {}))

    def __post_init__(self) -> None:
        timeout = self.config.federation.round_timeout_seconds
        self._sites = Dialogue(grid=self.grid, timeout_seconds=timeout, record=self.run.events.append)
        self._members = Membership(
            sites=self._sites,
            config=self.config,
            expected=self.expected_clients,
            admitted=None if self.secure is None else self.secure.names,
            registered=self.registered,
        )
        self._gate = self._made_gate()

    def run_rounds(self, start: Checkpoint) -> Adapter:
        """Run the rounds after ``start`` and return the last global adapter.

        Raises:
            FederationError: Too few clients appeared, agreed on the base model, or gave a usable update.
            RunError: The run directory cannot be written; complete rounds are kept.
        """
        rounds, every = self.config.federation.rounds, self.config.evaluation.every_rounds
        self._clock = RoundClock(self.config, effective_events(read_events(self.run.events.path)))
        if start.round > 0:
            self._members.base_hash = base_of_earlier_rounds(self.run.events.path)
        self._greet()
        adapter, self._carried = start.adapter, start.carried
        if self._gate is not None:
            self._gate.begin(read_events(self.run.events.path), adapter, self._carried)
        if start.round == 0:
            self._finish_round(0, adapter, evaluate=True)
        for round_number in range(start.round + 1, rounds + 1):
            adapter = self._next(round_number, adapter)
            save_checkpoint(self.run, Checkpoint(round=round_number, adapter=adapter, carried=self._carried))
            if round_number == rounds and self.config.personal.name == "fine_tuning":
                fine_tune_at_sites(self._sites, self.config, adapter, self._carried)
                self._measured = 0, None, {}
            due = round_number == rounds or (every > 0 and round_number % every == 0)
            self._finish_round(round_number, adapter, evaluate=due)
            if self.secure is not None:
                self.secure.finish(round_number)
        return adapter

    def _next(self, round_number: int, adapter: Adapter) -> Adapter:
        """Train a round, and return what it made, or the adapter before it where the gate takes it back."""
        if self._gate is None:
            return self._train(round_number, adapter)
        carried = self._carried
        try:
            made = self._train(round_number, adapter)
            passed = made is adapter or self._gate.judge(round_number, adapter, made, self._carried)
        except UpdateError as error:
            passed = self._gate.refuse(round_number, error)
        if passed:
            return made
        self._carried = carried
        return adapter

    def _greet(self) -> None:
        """Learn who is there, refuse to mix base models, and leave out who has nothing to train on."""
        members, sites = self._members, self._sites
        members.assemble()
        self._record_sites()
        sites.require(0, sites.nodes, self.config.federation.min_replies or 1)
        if self.secure is not None:
            drawn = self.config.federation.clients_per_round or len(sites.nodes)
            least = self.secure.smallest_sum
            together = min(drawn, len(sites.nodes)) if least is None else least
            lines = promise(together, policy_of(self.config), groups=self.config.secagg.groups)
            self.run.events.append(SecurePromise(lines=lines))

    def _record_sites(self) -> None:
        if not self._members.hellos:
            return
        loaded, sites = roll_call(self._members.hellos, self.split)
        self._base_hash = loaded.hash
        self.run.events.append(loaded)
        self.run.events.append(sites)

    def _train(self, round_number: int, adapter: Adapter) -> Adapter:
        """Ask a cohort for one round of local training and aggregate what comes back.

        A round without its quorum is asked for again, at most ``federation.round_attempts`` times in all;
        updates that arrived are kept.
        """
        attempts = self.config.federation.round_attempts
        fit = self._fit_cohort(round_number, adapter)
        if fit is not None and fit.broken is not None:
            self.run.events.append(fit.unfitted(fit.broken))
            return adapter
        total = self._begin_sum(round_number, adapter)

        def add(site: str, delta: Delta, weight: float) -> None:
            total.add(read_uplink(self.config, delta, adapter), weight, site=site)

        plain = PlainSum(add)
        for attempt in range(1, attempts + 1):
            request, cohort = self._begin_round(round_number, arrived=tuple(plain.weights), fit=fit)
            quorum = self._quorum(cohort) if fit is None else self._quorum_of_fit(fit)
            try:
                if self.secure is None:
                    self._ask_for_updates(request, adapter, cohort, plain, last=attempt == attempts)
                    return self._concluded(total, round_number, plain.weights)
                opened = self._opened_sum(self.secure, request, adapter, cohort, quorum)
            except (FederationError, SecureAggregationError) as error:
                missed = error.problems[0]
                if missed.code not in ("FT607", "FT920"):
                    raise
                never = None if fit is None else fit.never(self._sites.failures, quorum)
                if fit is not None and never is not None:
                    self.run.events.append(fit.unfitted(never))
                    return adapter
                if attempt == attempts:
                    raise
                self.run.events.append(
                    QuorumMissed(round=round_number, attempt=attempt, attempts=attempts, reason=missed.what)
                )
                continue
            if opened is None:
                return adapter
            mean = Delta(tensors={name: opened.mean[name] for name in self.spec.names(request.factors)})
            total.add(mean, 1.0, site="")
            return self._concluded(total, round_number, opened.weights)
        raise AssertionError("the last attempt returns or raises")

    def _begin_round(
        self, round_number: int, *, arrived: tuple[str, ...], fit: FitCohort | None
    ) -> tuple[TrainRequest, tuple[str, ...]]:
        """Return what is asked, and of whom: those whose update arrived stay in the cohort."""
        count, members = self.config.federation.clients_per_round, self._members
        if makes_clusters(self.config.personal, self._carried, round_number):
            count = None
        if self.secure is not None:
            self.secure.renew()
            members.admit(self.secure.names)
        before = set(members.hellos)
        there = members.present(round_number, arrived=arrived)
        if set(members.hellos) != before:
            self._record_sites()
        request = train_request(self.config, self.aggregator, round_number)
        if fit is None:
            cohort = sample_clients(there, count=count, seed=self.config.seed, round_number=round_number)
        else:
            cohort = fit.among(there)
        if not set(arrived) <= set(cohort):
            others = [name for name in cohort if name not in arrived]
            cohort = tuple(sorted([*arrived, *others[: len(cohort) - len(arrived)]]))
        self.run.events.append(RoundStarted(round=round_number, clients=cohort, factors=request.factors))
        return request, cohort

    def _quorum(self, cohort: tuple[str, ...]) -> int:
        """Return how many of a round must reply: as the contract says, else all, those who are away too."""
        return max(self._members.wanted, len(cohort) if self.config.federation.min_replies is None else 0)

    def _fit_cohort(self, round_number: int, adapter: Adapter) -> FitCohort | None:
        """Return whom a round that fits asks; None where the round trains."""
        if not is_fit(self.config, round_number):
            return None
        return fit_cohort(round_number, adapter, read_events(self.run.events.path))

    def _quorum_of_fit(self, fit: FitCohort) -> int:
        return fit.quorum(self._sites.nodes, self.config.federation.min_replies)

    def _opened_sum(
        self,
        secure: SecureCoordinator,
        request: TrainRequest,
        adapter: Adapter,
        cohort: tuple[str, ...],
        quorum: int,
    ) -> OpenedSum | None:
        """Return the sum of the cohort's updates; None where the round is burnt."""

        def record(name: str, reply: TrainReply, up: int, down: int) -> None:
            require_own(name, reply, request.round)
            self._trained(name, reply, weight=secure.weight(name), up=up, down=down, norm=None)

        return secure.open_sum(
            self._sites,
            request,
            adapter,
            to_arrays(adapter),
            cohort=cohort,
            quorum=quorum,
            base_hash=self._base_hash,
            trained=record,
        )

    def _ask_for_updates(
        self,
        request: TrainRequest,
        adapter: Adapter,
        cohort: tuple[str, ...],
        plain: PlainSum,
        *,
        last: bool,
    ) -> None:
        """Ask those of a cohort whose update has not arrived.

        Args:
            request: What is asked.
            adapter: That the sites receive.
            cohort: Of this attempt.
            plain: Takes the updates.
            last: Whether no attempt follows this one.

        Raises:
            FederationError: FT607, too few have arrived.
            UpdateError: The method could not add an update.
        """
        arrays = self._downlink(request, adapter)
        controlled = self.config.training.control_variates
        earlier = len(self._sites.failures)
        plain.expect(cohort)

        def accept(name: str, reply: TrainReply, message: Message) -> None:
            require_own(name, reply, request.round)
            where = f"round {request.round}, client {name}"
            record = arrays_of(message)
            weight = weight_of(self.config, reply)
            expected = uplink_spec(self.config, self.spec, name)
            update, change = record, Adapter()
            if controlled:
                update, change = read_controls(
                    record, expected, request.factors, self.config.updates, where=where
                )
            delta = decode(update, expected, request.factors, self.config.updates, where=where)
            both = Delta(tensors=dict(delta.tensors) | as_controls(change))
            gone = {failure.client for failure in self._sites.failures[earlier:]} if last else ()
            plain.take(name, both, weight, gone=gone)
            sent = wire_bytes(arrays(name))
            self._trained(name, reply, weight=weight, up=wire_bytes(record), down=sent, norm=delta.norm)

        missing = [name for name in cohort if name not in plain.weights]
        self._sites.ask(
            "train", request.round, request, to=missing, expect=TrainReply, arrays=arrays, accept=accept
        )
        self._sites.require(request.round, plain.weights, self._quorum(cohort))
        plain.finish()

    def _downlink(self, request: TrainRequest, adapter: Adapter) -> Callable[[str], ArrayRecord]:
        """Return what each site receives to train, by its name."""
        if not self.config.training.control_variates:
            return downlink_to_train(adapter, self._carried)
        arrays = downlink(adapter, self._carried)
        arrays = with_controls(arrays, adapter, self._carried, self.spec, request.factors)
        return lambda _: arrays

    def _trained(
        self, name: str, reply: TrainReply, *, weight: float, up: int, down: int, norm: float | None
    ) -> None:
        if reply.steps:
            self._clock.trained(name)
        self.run.events.append(
            trained(name, reply, round_number=reply.round, weight=weight, up=up, down=down, norm=norm)
        )

    def _begin_sum(self, round_number: int, adapter: Adapter) -> RoundSum | ClusteringSum | ClusteredSum:
        return begin_sum(
            self.aggregator,
            self.spec,
            adapter,
            self._carried,
            personal=self.config.personal,
            round_number=round_number,
            measure=self.config.aggregation.error_meter,
        )

    def _concluded(
        self,
        total: RoundSum | ClusteringSum | ClusteredSum,
        round_number: int,
        weights: Mapping[str, float],
    ) -> Adapter:
        """Record what a round came to, and return the new adapter."""
        done = total.conclude(round_number, weights)
        self._carried = done.carried
        self.run.events.append(done.event)
        if done.clustered is not None:
            self.run.events.append(done.clustered)
        return done.adapter

    def _finish_round(self, round_number: int, adapter: Adapter, *, evaluate: bool) -> None:
        judged = self.config.gate.judge == "sites"  # what it measured stands in the log: go through with it
        loss = mean_loss(self._losses(round_number, adapter, self._carried)) if evaluate or judged else None
        reached = self._clock.finished()
        self.run.events.append(RoundFinished(round=round_number, held_out_loss=loss, virtual_seconds=reached))

    def _losses(self, round_number: int, adapter: Adapter, carried: Carried) -> dict[str, float]:
        """Return the held-out losses of an adapter, asked for once a round."""
        known_round, known, losses = self._measured
        if known_round != round_number or known is not adapter:
            losses = losses_at_sites(self._sites, self.config, round_number, adapter, carried)
            self._measured = round_number, adapter, losses
        return losses

    def _made_gate(self) -> Gate | None:
        gate = self.config.gate
        if gate.judge == "none":
            return None

        def at_sites(round_number: int, adapter: Adapter, carried: Carried) -> float | None:
            return median_loss(self._losses(round_number, adapter, carried).values())

        loss = ServerRows(self.config).loss if gate.judge == "server" else at_sites
        return Gate(config=gate, loss=loss, record=self.run.events.append)
