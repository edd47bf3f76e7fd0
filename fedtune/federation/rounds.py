"""The server's half of the federation: the round loop over a Flower grid.

Federated averaging (McMahan et al. 2017, Algorithm 1) with the trained factors, the aggregation and its
weights as configured. Flower's own `Strategy.start` can neither resume nor name who failed; the loop is ours,
over `Grid.send_and_receive`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedtune.aggregation.base import Aggregator
from fedtune.aggregation.meter import ErrorMeter
from fedtune.aggregation.weighting import client_weight, normalised
from fedtune.config.schema import Config
from fedtune.errors import FederationError, Problem, UpdateError
from fedtune.federation.checkpoint import Checkpoint, save_checkpoint
from fedtune.federation.sampling import sample_clients
from fedtune.federation.wire import (
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    HelloRequest,
    TrainReply,
    TrainRequest,
    arrays_of,
    content,
    parse_reply,
)
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import (
    ClientEvaluated,
    ClientFailed,
    ClientTrained,
    Event,
    ModelLoaded,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    Sites,
    SiteSize,
    Split,
)
from fedtune.observability.run_directory import RunDirectory
from fedtune.training.delta import Delta
from fedtune.updates.codec import from_arrays, to_arrays, wire_bytes

__all__ = ["Federation"]

logger = logging.getLogger(__name__)
Reply = TypeVar("Reply", HelloReply, TrainReply, EvaluateReply)
Stage = Literal["hello", "train", "evaluate"]
NODE_WAIT_SECONDS = 120.0
"""How long the server waits for its clients to appear before the first round."""


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
    """

    grid: Grid
    config: Config
    run: RunDirectory
    spec: AdapterSpec
    aggregator: Aggregator
    expected_clients: int
    split: Split | None = None
    _nodes: dict[str, int] = field(default_factory=dict, init=False)
    _failures: list[ClientFailed] = field(default_factory=list, init=False)

    def run_rounds(self, start: Checkpoint) -> Adapter:
        """Run the rounds after ``start`` and return the last global adapter.

        Raises:
            FederationError: Too few clients appeared, agreed on the base model, or gave a usable update.
            RunError: The run directory cannot be written; complete rounds are kept.
        """
        rounds = self.config.federation.rounds
        self._greet()
        adapter = start.adapter
        if start.round == 0:
            self._record(RoundFinished(round=0, held_out_loss=self._evaluate(0, adapter)))
        for round_number in range(start.round + 1, rounds + 1):
            adapter = self._train(round_number, adapter)
            save_checkpoint(self.run, Checkpoint(round=round_number, adapter=adapter))
            every = self.config.evaluation.every_rounds
            due = round_number == rounds or (every > 0 and round_number % every == 0)
            loss = self._evaluate(round_number, adapter) if due else None
            self._record(RoundFinished(round=round_number, held_out_loss=loss))
        return adapter

    def _greet(self) -> None:
        """Learn who is there, and refuse to mix base models."""
        nodes = self._wait_for_nodes()
        messages = [Message(content(HelloRequest()), node, "query.hello") for node in nodes]
        hellos: dict[str, HelloReply] = {}
        by_number = {node: f"node {node}" for node in nodes}
        for node, reply in self._ask(0, "hello", messages, HelloReply, by_number).items():
            if reply.site in hellos:
                self._fail(0, reply.site, "hello", "FT602", f"Node {node} uses the name of another site.")
                continue
            hellos[reply.site] = reply
            self._nodes[reply.site] = node
        self._require(0, list(hellos), [reply for reply in hellos.values() if reply.train_examples])
        first = hellos[min(hellos)]
        for name, hello in hellos.items():
            if hello.base_hash != first.base_hash or hello.adapter_parameters != first.adapter_parameters:
                reason = (
                    f"Its base model is {hello.base_hash[:12]}, that of {first.site} {first.base_hash[:12]}."
                )
                self._fail(0, name, "hello", "FT603", reason)
                del self._nodes[name]
        self._record(
            ModelLoaded(
                seconds=max(hello.load_seconds for hello in hellos.values()),
                name=first.base_name,
                hash=first.base_hash,
                parameters=first.parameters,
                adapter_parameters=first.adapter_parameters,
                quantization=first.quantization,
                compute_dtype=first.compute_dtype,
            )
        )
        self._record(
            Sites(
                sites=tuple(
                    SiteSize(
                        name=name,
                        train_examples=hellos[name].train_examples,
                        held_out_examples=hellos[name].held_out_examples,
                    )
                    for name in sorted(hellos)
                ),
                skipped_rows=max(hello.skipped_rows for hello in hellos.values()),
                split=self.split,
            )
        )
        for name in [name for name in self._nodes if hellos[name].train_examples == 0]:
            # Named once, and asked for nothing more: there is neither a row to learn from nor one to test on.
            self._fail(0, name, "hello", "FT404", "It has no example to train on.")
            del self._nodes[name]

    def _wait_for_nodes(self) -> list[int]:
        deadline = time.monotonic() + NODE_WAIT_SECONDS
        while True:
            nodes = sorted(self.grid.get_node_ids())
            if len(nodes) >= self.expected_clients:
                return nodes
            if time.monotonic() > deadline:
                raise FederationError(
                    Problem(
                        code="FT604",
                        what=f"{len(nodes)} of {self.expected_clients} clients appeared "
                        f"in {NODE_WAIT_SECONDS:.0f} s.",
                        where="start of the federation",
                        fix="Look into the clients' logs, then run again with resume=true.",
                    )
                )
            time.sleep(0.1)

    def _train(self, round_number: int, adapter: Adapter) -> Adapter:
        federation, training = self.config.federation, self.config.training
        factors = self.aggregator.factors(round_number)
        cohort = sample_clients(
            list(self._nodes),
            count=federation.clients_per_round,
            seed=self.config.seed,
            round_number=round_number,
        )
        self._record(RoundStarted(round=round_number, clients=cohort, factors=factors))
        arrays = to_arrays(adapter)
        request = TrainRequest(
            round=round_number,
            factors=factors,
            first_step=(round_number - 1) * training.steps_per_round,
            total_steps=federation.rounds * training.steps_per_round,
        )
        messages = [Message(content(request, arrays), self._nodes[name], "train") for name in cohort]
        deltas: dict[str, Delta] = {}
        replies: dict[str, TrainReply] = {}

        def accept(node: int, reply: TrainReply, message: Message) -> None:
            name = self._name_of(node)
            if reply.site != name or reply.round != round_number:
                raise UpdateError(
                    Problem(
                        code="FT521",
                        what=f"A delta of {reply.site} for round {reply.round} came from {name}.",
                        where=f"round {round_number}",
                        fix="Restart that site's client.",
                    )
                )
            record = arrays_of(message)
            where = f"round {round_number}, client {name}"
            deltas[name] = Delta(tensors=from_arrays(record, self.spec, factors, where=where))
            replies[name] = reply
            self._record(
                ClientTrained(
                    round=round_number,
                    client=name,
                    weight=self._weight(reply),
                    examples=reply.examples,
                    tokens=reply.tokens,
                    steps=reply.steps,
                    loss_before=reply.loss_before,
                    loss_after=reply.loss_after,
                    started=reply.started,
                    finished=reply.finished,
                    peak_memory_mib=reply.peak_memory_mib,
                    uplink_bytes=wire_bytes(record),
                    downlink_bytes=wire_bytes(arrays),
                    delta_norm=deltas[name].norm,
                )
            )

        self._ask(round_number, "train", messages, TrainReply, self._by_node(), accept)
        self._require(round_number, list(cohort), list(deltas))
        return self._aggregate(round_number, adapter, deltas, replies)

    def _aggregate(
        self,
        round_number: int,
        adapter: Adapter,
        deltas: Mapping[str, Delta],
        replies: Mapping[str, TrainReply],
    ) -> Adapter:
        """Add in the order of the names, which fixes the rounding whatever the order of arrival."""
        started = time.perf_counter()
        raw = {name: self._weight(replies[name]) for name in sorted(deltas)}
        shares = normalised(raw)
        accumulator = self.aggregator.start(adapter)
        for name, weight in raw.items():
            accumulator.add(deltas[name], weight)
        result = accumulator.result()
        error = None
        if self.config.aggregation.error_meter:
            meter = ErrorMeter(self.spec, adapter)
            for name, weight in raw.items():
                meter.add(deltas[name], weight)
            error = meter.result(result)
        step = {name: result[name] - adapter[name] for name in self.spec.shapes}
        self._record(
            RoundAggregated(
                round=round_number,
                clients=tuple(shares),
                weights=tuple(shares.values()),
                aggregation_error=error,
                exact=self.aggregator.exact,
                seconds=time.perf_counter() - started,
                delta_norm=Delta(tensors=step).norm,
            )
        )
        return result

    def _weight(self, reply: TrainReply) -> float:
        weighting = self.config.aggregation.weighting
        return client_weight(weighting, examples=reply.examples, response_tokens=reply.response_tokens)

    def _evaluate(self, round_number: int, adapter: Adapter) -> float | None:
        """Held-out loss of an adapter, an unweighted mean over the sites that hold something out."""
        arrays = to_arrays(adapter)
        request = content(EvaluateRequest(round=round_number), arrays)
        messages = [Message(request, self._nodes[name], "evaluate") for name in sorted(self._nodes)]
        losses: dict[str, float] = {}

        def accept(node: int, reply: EvaluateReply, _: Message) -> None:
            name = self._name_of(node)
            if reply.loss is None:
                return
            losses[name] = reply.loss
            self._record(
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

        self._ask(round_number, "evaluate", messages, EvaluateReply, self._by_node(), accept)
        # In the order of the names: a float sum depends on its order.
        return sum(losses[name] for name in sorted(losses)) / len(losses) if losses else None

    def _ask(
        self,
        round_number: int,
        stage: Stage,
        messages: list[Message],
        kind: type[Reply],
        names: Mapping[int, str],
        accept: Callable[[int, Reply, Message], None] | None = None,
    ) -> dict[int, Reply]:
        """Send, wait, and name everyone whose reply is missing, an error, or not acceptable."""
        timeout = self.config.federation.round_timeout_seconds
        asked = [message.metadata.dst_node_id for message in messages]
        good: dict[int, Reply] = {}
        answered: set[int] = set()
        for message in self.grid.send_and_receive(messages, timeout=timeout):
            node = message.metadata.src_node_id
            if node not in asked or node in answered:
                continue
            answered.add(node)
            if message.has_error():
                self._fail(
                    round_number, names[node], stage, "FT605", message.error.reason or "No reason given."
                )
                continue
            try:
                reply = parse_reply(message, kind)
                if isinstance(reply, Failure):
                    self._fail(round_number, names[node], stage, reply.code, reply.reason)
                    continue
                if accept is not None:
                    accept(node, reply, message)
                good[node] = reply
            except UpdateError as error:
                first = error.problems[0]
                self._fail(round_number, names[node], stage, first.code, first.what)
        for node in asked:
            if node not in answered:
                self._fail(round_number, names[node], stage, "FT606", f"No reply within {timeout:g} s.")
        return good

    def _require(self, round_number: int, asked: list[str], usable: list[object]) -> None:
        """Stop loudly where a round has fewer usable replies than its contract."""
        wanted = self.config.federation.min_replies or len(asked)
        if len(usable) >= max(1, min(wanted, self.expected_clients)):
            return
        failed = [
            f"{event.client} ({event.code}: {event.reason})"
            for event in self._failures
            if event.round == round_number
        ]
        raise FederationError(
            Problem(
                code="FT607",
                what=f"{len(usable)} usable replies, {wanted} are required. Failed: {'; '.join(failed) or 'none'}.",
                where=f"round {round_number}, federation.min_replies",
                fix="Mend the named sites and run again with resume=true, or lower federation.min_replies.",
            )
        )

    def _fail(self, round_number: int, client: str, stage: Stage, code: str, reason: str) -> None:
        logger.warning("round %d: %s failed at %s: %s %s", round_number, client, stage, code, reason)
        failure = ClientFailed(round=round_number, client=client, stage=stage, code=code, reason=reason)
        self._failures.append(failure)
        self._record(failure)

    def _name_of(self, node: int) -> str:
        return self._by_node()[node]

    def _by_node(self) -> dict[int, str]:
        return {node: name for name, node in self._nodes.items()}

    def _record(self, event: Event) -> None:
        self.run.events.append(event)
