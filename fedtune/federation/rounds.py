"""The server's half of the federation: the round loop over a Flower grid.

Federated averaging (McMahan et al. 2017, Algorithm 1) with the trained factors, the aggregation and its
weights as configured. Flower's own `Strategy.start` can neither resume nor name who failed; the loop is ours,
over `Grid.send_and_receive`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.meter import ErrorMeter
from fedtune.aggregation.weighting import client_weight, normalised
from fedtune.config.schema import Config
from fedtune.errors import Problem, UpdateError
from fedtune.federation.checkpoint import Checkpoint, save_checkpoint
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.requests import train_request
from fedtune.federation.sampling import sample_clients
from fedtune.federation.secure import policy_of
from fedtune.federation.secure_round import OpenedSum, SecureCoordinator
from fedtune.federation.wire import (
    EvaluateReply,
    EvaluateRequest,
    HelloReply,
    HelloRequest,
    TrainReply,
    TrainRequest,
    arrays_of,
)
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import (
    ClientEvaluated,
    ClientTrained,
    ModelLoaded,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    SecurePromise,
    Sites,
    SiteSize,
    Split,
)
from fedtune.observability.run_directory import RunDirectory
from fedtune.secagg.promise import promise
from fedtune.training.delta import Delta
from fedtune.updates.codec import from_arrays, to_arrays, wire_bytes

__all__ = ["Federation"]

_SUM = "the secure sum"


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
    """

    grid: Grid
    config: Config
    run: RunDirectory
    spec: AdapterSpec
    aggregator: Aggregator
    expected_clients: int
    split: Split | None = None
    secure: SecureCoordinator | None = None
    _sites: Dialogue = field(init=False)
    _base_hash: str = field(init=False, default="")

    def __post_init__(self) -> None:
        timeout = self.config.federation.round_timeout_seconds
        self._sites = Dialogue(grid=self.grid, timeout_seconds=timeout, record=self.run.events.append)

    def run_rounds(self, start: Checkpoint) -> Adapter:
        """Run the rounds after ``start`` and return the last global adapter.

        Raises:
            FederationError: Too few clients appeared, agreed on the base model, or gave a usable update.
            RunError: The run directory cannot be written; complete rounds are kept.
        """
        rounds, every = self.config.federation.rounds, self.config.evaluation.every_rounds
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

    def _greet(self) -> None:
        """Learn who is there, refuse to mix base models, and leave out who has nothing to train on."""
        sites = self._sites
        sites.nodes = nodes = sites.wait_for_nodes(self.expected_clients)
        replies = sites.ask("hello", 0, HelloRequest(), to=list(nodes), expect=HelloReply)
        hellos: dict[str, HelloReply] = {}
        sites.nodes = {}
        for node_name, hello in sorted(replies.items()):
            if hello.site in hellos:
                sites.fail("hello", 0, node_name, "FT602", f"it uses the name of another site, {hello.site}")
                continue
            hellos[hello.site], sites.nodes[hello.site] = hello, nodes[node_name]
        first = next((hellos[name] for name in sorted(hellos)), None)
        for name, hello in sorted(hellos.items()):
            if self.secure is not None and name not in self.secure.names:
                sites.fail("hello", 0, name, "FT905", "it is not in the roster of this federation")
                del hellos[name], sites.nodes[name]
            elif first and _base(hello) != _base(first):
                reason = f"its base model {_base(hello)} differs from that of {first.site}, {_base(first)}"
                sites.fail("hello", 0, name, "FT603", reason)
                del hellos[name], sites.nodes[name]
        sites.require(0, len(hellos), self.config.federation.min_replies or self.expected_clients)
        self._record_sites([hellos[name] for name in sorted(hellos)])
        for name, hello in sorted(hellos.items()):
            if not hello.trains:
                sites.fail("hello", 0, name, "FT611", "it has no example to train on, and is left out")
                del sites.nodes[name]
        sites.require(0, len(sites.nodes), self.config.federation.min_replies or 1)
        if self.secure is not None:
            drawn = self.config.federation.clients_per_round or len(sites.nodes)
            lines = promise(min(drawn, len(sites.nodes)), policy_of(self.config))
            self.run.events.append(SecurePromise(lines=lines))

    def _record_sites(self, hellos: list[HelloReply]) -> None:
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
            )
            for hello in hellos
        )
        skipped = max(hello.skipped_rows or 0 for hello in hellos)
        self.run.events.append(Sites(sites=sizes, skipped_rows=skipped, split=self.split))

    def _train(self, round_number: int, adapter: Adapter) -> Adapter:
        """Ask a cohort for one round of local training and aggregate what comes back."""
        federation = self.config.federation
        request = train_request(self.config, self.aggregator, round_number)
        cohort = sample_clients(
            list(self._sites.nodes),
            count=federation.clients_per_round,
            seed=self.config.seed,
            round_number=round_number,
        )
        self.run.events.append(RoundStarted(round=round_number, clients=cohort, factors=request.factors))
        if self.secure is None:
            deltas, weights = self._plain_updates(request, adapter, cohort)
            return self._aggregate(round_number, adapter, deltas, weights)
        opened = self._opened_sum(self.secure, request, adapter, cohort)
        if opened is None:
            return adapter
        mean = Delta(tensors={name: opened.mean[name] for name in self.spec.names(request.factors)})
        return self._aggregate(round_number, adapter, {_SUM: mean}, {_SUM: 1.0}, of=opened.weights)

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
            base_hash=self._base_hash,
            trained=trained,
        )

    def _plain_updates(
        self, request: TrainRequest, adapter: Adapter, cohort: tuple[str, ...]
    ) -> tuple[dict[str, Delta], dict[str, float]]:
        """Return each site's delta and weight, by name in sorted order."""
        arrays = to_arrays(adapter)
        sent_bytes = wire_bytes(arrays)
        deltas: dict[str, Delta] = {}

        def accept(name: str, reply: TrainReply, message: Message) -> None:
            _require_own(name, reply, request.round)
            where = f"round {request.round}, client {name}"
            record = arrays_of(message)
            weight = self._weight(reply)
            deltas[name] = Delta(tensors=from_arrays(record, self.spec, request.factors, where=where))
            self._trained(
                name, reply, weight=weight, up=wire_bytes(record), down=sent_bytes, norm=deltas[name].norm
            )

        replies = self._sites.ask(
            "train", request.round, request, to=cohort, expect=TrainReply, arrays=arrays, accept=accept
        )
        wanted = self.config.federation.min_replies or len(cohort)
        self._sites.require(request.round, len(replies), wanted)
        return deltas, {name: self._weight(replies[name]) for name in sorted(replies)}

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


def _base(hello: HelloReply) -> str:
    return f"{hello.base_hash[:12]} ({hello.quantization}, {hello.adapter_parameters:,} adapter parameters)"


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
