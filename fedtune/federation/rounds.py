"""The server's half of the federation: the round loop over a Flower grid.

Federated averaging (McMahan et al. 2017, Algorithm 1) with the trained factors, the aggregation and its
weights as configured. Flower's own `Strategy.start` can neither resume nor name who failed; the loop is ours,
over `Grid.send_and_receive`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.meter import ErrorMeter
from fedtune.aggregation.weighting import client_weight, normalised
from fedtune.config.schema import Config
from fedtune.errors import FederationError, Problem, SecureAggregationError, UpdateError
from fedtune.federation.checkpoint import Checkpoint, save_checkpoint
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.membership import Membership
from fedtune.federation.requests import train_request
from fedtune.federation.sampling import sample_clients
from fedtune.federation.secure import policy_of
from fedtune.federation.secure_round import OpenedSum, SecureCoordinator
from fedtune.federation.wire import (
    EvaluateReply,
    EvaluateRequest,
    TrainReply,
    TrainRequest,
    arrays_of,
)
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import (
    ClientEvaluated,
    ClientTrained,
    ModelLoaded,
    QuorumMissed,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    SecurePromise,
    Sites,
    SiteSize,
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

_SUM = "the secure sum"


@dataclass
class _PlainUpdates:
    """Updates of a round that have arrived, by name in sorted order: a sum depends on its order."""

    deltas: dict[str, Delta] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)

    def take(self, name: str, delta: Delta, weight: float) -> None:
        self.deltas[name], self.weights[name] = delta, weight
        self.weights = dict(sorted(self.weights.items()))


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

    def run_rounds(self, start: Checkpoint) -> Adapter:
        """Run the rounds after ``start`` and return the last global adapter.

        Raises:
            FederationError: Too few clients appeared, agreed on the base model, or gave a usable update.
            RunError: The run directory cannot be written; complete rounds are kept.
        """
        rounds, every = self.config.federation.rounds, self.config.evaluation.every_rounds
        if start.round > 0:
            self._members.base_hash = self._base_of_earlier_rounds()
        self._greet()
        adapter = start.adapter
        if start.round == 0:
            self._finish_round(0, adapter, evaluate=True)
        for round_number in range(start.round + 1, rounds + 1):
            adapter = self._train(round_number, adapter)
            save_checkpoint(self.run, Checkpoint(round=round_number, adapter=adapter))
            due = round_number == rounds or (every > 0 and round_number % every == 0)
            self._finish_round(round_number, adapter, evaluate=due)
            if self.secure is not None:
                self.secure.finish(round_number)
        return adapter

    def _base_of_earlier_rounds(self) -> str | None:
        events = effective_events(read_events(self.run.events.path))
        loaded = [event.hash for event in events if isinstance(event, ModelLoaded)]
        return loaded[-1] if loaded else None

    def _greet(self) -> None:
        """Learn who is there, refuse to mix base models, and leave out who has nothing to train on."""
        members, sites = self._members, self._sites
        members.assemble()
        self._record_sites()
        sites.require(0, sites.nodes, self.config.federation.min_replies or 1)
        if self.secure is not None:
            drawn = self.config.federation.clients_per_round or len(sites.nodes)
            lines = promise(min(drawn, len(sites.nodes)), policy_of(self.config))
            self.run.events.append(SecurePromise(lines=lines))

    def _record_sites(self) -> None:
        hellos = [self._members.hellos[name] for name in sorted(self._members.hellos)]
        if not hellos:
            return
        first = hellos[0]
        self._base_hash = first.base_hash
        self.run.events.append(
            ModelLoaded(
                seconds=max(hello.load_seconds for hello in hellos),
                name=first.base_name,
                hash=first.base_hash,
                parameters=first.parameters,
                adapter_parameters=first.adapter_parameters,
                quantization=first.quantization,
                compute_dtype=first.compute_dtype,
            )
        )
        sizes = tuple(
            SiteSize(
                name=hello.site,
                train_examples=hello.train_examples,
                held_out_examples=hello.held_out_examples,
                version=hello.version,
            )
            for hello in hellos
        )
        skipped = max(hello.skipped_rows or 0 for hello in hellos)
        self.run.events.append(Sites(sites=sizes, skipped_rows=skipped, split=self.split))

    def _train(self, round_number: int, adapter: Adapter) -> Adapter:
        """Ask a cohort for one round of local training and aggregate what comes back.

        A round without its quorum is asked for again, at most ``federation.round_attempts`` times in all;
        updates that arrived are kept.
        """
        attempts = self.config.federation.round_attempts
        plain = _PlainUpdates()
        for attempt in range(1, attempts + 1):
            request, cohort = self._begin_round(round_number, arrived=tuple(plain.deltas))
            try:
                if self.secure is None:
                    self._ask_for_updates(request, adapter, cohort, plain)
                    return self._aggregate(round_number, adapter, plain.deltas, plain.weights)
                opened = self._opened_sum(self.secure, request, adapter, cohort)
            except (FederationError, SecureAggregationError) as error:
                missed = error.problems[0]
                if missed.code not in ("FT607", "FT920") or attempt == attempts:
                    raise
                self.run.events.append(
                    QuorumMissed(round=round_number, attempt=attempt, attempts=attempts, reason=missed.what)
                )
                continue
            if opened is None:
                return adapter
            mean = Delta(tensors={name: opened.mean[name] for name in self.spec.names(request.factors)})
            return self._aggregate(round_number, adapter, {_SUM: mean}, {_SUM: 1.0}, of=opened.weights)
        raise AssertionError("the last attempt returns or raises")

    def _begin_round(
        self, round_number: int, *, arrived: tuple[str, ...]
    ) -> tuple[TrainRequest, tuple[str, ...]]:
        """Return what is asked, and of whom: those whose update arrived stay in the cohort."""
        count, members = self.config.federation.clients_per_round, self._members
        if self.secure is not None:
            self.secure.renew()
            members.admit(self.secure.names)
        before = set(members.hellos)
        there = members.present(round_number, arrived=arrived)
        if set(members.hellos) != before:
            self._record_sites()
        request = train_request(self.config, self.aggregator, round_number)
        cohort = sample_clients(there, count=count, seed=self.config.seed, round_number=round_number)
        if not set(arrived) <= set(cohort):
            others = [name for name in cohort if name not in arrived]
            cohort = tuple(sorted([*arrived, *others[: len(cohort) - len(arrived)]]))
        self.run.events.append(RoundStarted(round=round_number, clients=cohort, factors=request.factors))
        return request, cohort

    def _quorum(self, cohort: tuple[str, ...]) -> int:
        """Return how many of a round must reply: as the contract says, else all, those who are away too."""
        return max(self._members.wanted, len(cohort) if self.config.federation.min_replies is None else 0)

    def _opened_sum(
        self, secure: SecureCoordinator, request: TrainRequest, adapter: Adapter, cohort: tuple[str, ...]
    ) -> OpenedSum | None:
        """Return the sum of the cohort's updates; None where the round is burnt."""

        def trained(name: str, reply: TrainReply, up: int, down: int) -> None:
            _require_own(name, reply, request.round)
            self._trained(name, reply, weight=secure.weight(name), up=up, down=down, norm=None)

        return secure.open_sum(
            self._sites,
            request,
            adapter,
            to_arrays(adapter),
            cohort=cohort,
            quorum=self._quorum(cohort),
            base_hash=self._base_hash,
            trained=trained,
        )

    def _ask_for_updates(
        self, request: TrainRequest, adapter: Adapter, cohort: tuple[str, ...], plain: _PlainUpdates
    ) -> None:
        """Ask those of a cohort whose update has not arrived.

        Raises:
            FederationError: FT607, too few have arrived.
        """
        arrays = to_arrays(adapter)
        sent_bytes = wire_bytes(arrays)

        def accept(name: str, reply: TrainReply, message: Message) -> None:
            _require_own(name, reply, request.round)
            where = f"round {request.round}, client {name}"
            record = arrays_of(message)
            weight = self._weight(reply)
            delta = decode(record, self.spec, request.factors, self.config.updates, where=where)
            plain.take(name, delta, weight)
            self._trained(name, reply, weight=weight, up=wire_bytes(record), down=sent_bytes, norm=delta.norm)

        missing = [name for name in cohort if name not in plain.deltas]
        self._sites.ask(
            "train", request.round, request, to=missing, expect=TrainReply, arrays=arrays, accept=accept
        )
        self._sites.require(request.round, plain.deltas, self._quorum(cohort))

    def _trained(
        self, name: str, reply: TrainReply, *, weight: float, up: int, down: int, norm: float | None
    ) -> None:
        self.run.events.append(
            ClientTrained(
                round=reply.round,
                client=name,
                weight=weight,
                examples=reply.examples,
                tokens=reply.tokens,
                steps=reply.steps,
                loss_before=reply.loss_before,
                loss_after=reply.loss_after,
                started=reply.started,
                finished=reply.finished,
                peak_memory_mib=reply.peak_memory_mib,
                uplink_bytes=up,
                downlink_bytes=down,
                delta_norm=norm,
            )
        )

    def _aggregate(
        self,
        round_number: int,
        adapter: Adapter,
        deltas: Mapping[str, Delta],
        weights: Mapping[str, float],
        *,
        of: Mapping[str, float] | None = None,
    ) -> Adapter:
        """Add in the order of the names, which fixes the rounding whatever the order of arrival.

        Args:
            round_number: Round, from 1.
            adapter: What the sites received.
            deltas: By name; one mean, where a secure sum was opened.
            weights: Of the deltas.
            of: Weights of the sites behind that mean.
        """
        started = time.perf_counter()
        shares = normalised(weights if of is None else of)
        accumulator = self.aggregator.start(adapter)
        meter = ErrorMeter(self.spec, adapter) if self.config.aggregation.error_meter else None
        for name, weight in weights.items():
            accumulator.add(deltas[name], weight)
            if meter is not None:
                meter.add(deltas[name], weight)
        result = accumulator.result()
        step = Delta(tensors={name: result[name] - adapter[name] for name in self.spec.shapes})
        self.run.events.append(
            RoundAggregated(
                round=round_number,
                clients=tuple(shares),
                weights=tuple(shares.values()),
                aggregation_error=None if meter is None else meter.result(result),
                exact=self.aggregator.exact,
                seconds=time.perf_counter() - started,
                delta_norm=step.norm,
            )
        )
        return result

    def _weight(self, reply: TrainReply) -> float:
        weighting = self.config.aggregation.weighting
        needed = {"examples": reply.examples, "tokens": reply.response_tokens}.get(weighting, 0)
        if needed is None:
            raise UpdateError(
                Problem(
                    code="FT522",
                    what=f"{reply.site} does not say how many {weighting} it trained on",
                    where=f"round {reply.round}, aggregation.weighting={weighting}",
                    fix=f"let the site name {weighting} in federation.metrics, or weigh by uniform",
                )
            )
        return client_weight(
            weighting, examples=reply.examples or 0, response_tokens=reply.response_tokens or 0
        )

    def _finish_round(self, round_number: int, adapter: Adapter, *, evaluate: bool) -> None:
        loss = self._evaluate(round_number, adapter) if evaluate else None
        self.run.events.append(RoundFinished(round=round_number, held_out_loss=loss))

    def _evaluate(self, round_number: int, adapter: Adapter) -> float | None:
        """Held-out loss of an adapter, an unweighted mean over the sites that hold something out."""

        def accept(name: str, reply: EvaluateReply, _: Message) -> None:
            _require_own(name, reply, round_number)
            if reply.loss is None:
                return
            self.run.events.append(
                ClientEvaluated(
                    round=round_number,
                    client=name,
                    loss=reply.loss,
                    tokens=reply.tokens,
                    examples=reply.examples,
                    started=reply.started,
                    finished=reply.finished,
                )
            )

        replies = self._sites.ask(
            "evaluate",
            round_number,
            EvaluateRequest(round=round_number),
            to=sorted(self._sites.nodes),
            expect=EvaluateReply,
            arrays=to_arrays(adapter),
            accept=accept,
        )
        # In the order of the names: a float sum depends on its order.
        losses = [replies[name].loss for name in sorted(replies)]
        known = [loss for loss in losses if loss is not None]
        return sum(known) / len(known) if known else None


def _require_own(name: str, reply: TrainReply | EvaluateReply, round_number: int) -> None:
    """Refuse a reply that speaks for another site or another round."""
    if (reply.site, reply.round) != (name, round_number):
        raise UpdateError(
            Problem(
                code="FT521",
                what=f"a reply of {reply.site} for round {reply.round} came from {name}",
                where=f"round {round_number}",
                fix="restart that site's client",
            )
        )
