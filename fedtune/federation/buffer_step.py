"""One step of the server while its buffer fills: who may be asked, for what, and which update counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from fedtune.aggregation.base import Aggregator
from fedtune.config.schema import Config
from fedtune.errors import FederationError, Problem, UpdateError
from fedtune.federation.buffer_filling import Filling
from fedtune.federation.dialogue import Dialogue, reply_of
from fedtune.federation.downlink import downlink
from fedtune.federation.flight import Flight, Training
from fedtune.federation.replies import require_own, trained, weight_of
from fedtune.federation.requests import own_pace_request
from fedtune.federation.uplink import read_uplink, uplink_spec
from fedtune.federation.wire import Failure, TrainReply, arrays_of, content
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.updates.codec import wire_bytes
from fedtune.updates.decode import decode

__all__ = ["BufferStep"]


@dataclass(kw_only=True)
class BufferStep:
    """As `fedtune.federation.pace.Step`.

    Attributes:
        number: Which step it is, from 1.
        filling: The buffer.
        there: Sites that were there when it began.
        wanted: How many sites the contract demands.
        config: The whole configuration.
        spec: Names, shapes and dtype of the adapter.
        aggregator: What is trained.
        sites: The way to them.
        flight: Who is training.
        adapters: Global adapters by version, as far as they may be asked for.
        time: Gives the virtual time.
    """

    number: int
    filling: Filling
    there: frozenset[str]
    wanted: int
    config: Config
    spec: AdapterSpec
    aggregator: Aggregator
    sites: Dialogue
    flight: Flight
    adapters: Mapping[int, Adapter]
    time: Callable[[], float | None]
    _failures: dict[str, int] = field(init=False, default_factory=dict)

    @property
    def room(self) -> int:
        return self.filling.room

    def willing(self) -> tuple[str, ...]:
        attempts = self.config.federation.round_attempts
        return tuple(sorted(name for name in self.there if self._failures.get(name, 0) < attempts))

    def require_enough(self) -> None:
        """Stop where the contract cannot be kept any more, or the buffer cannot fill.

        Raises:
            FederationError: FT607.
        """
        left = {*self.willing(), *self.flight.trainings}
        self.sites.require(self.number, left.union(self.filling.sites), self.wanted)
        if not left:
            have = self.config.asynchronous.buffer - self.room
            raise FederationError(
                Problem(
                    code="FT607",
                    what=f"{have} of {self.config.asynchronous.buffer} updates of the buffer came, and no "
                    "site is left to send another",
                    where=f"round {self.number}, federation.round_attempts",
                    fix="mend the sites that failed and run again with resume=true, or raise "
                    "federation.round_attempts",
                )
            )

    def request(self, training: Training) -> RecordDict:
        body = own_pace_request(
            self.config, self.aggregator, training=training.number, version=training.version
        )
        return content(body, downlink(self.adapters[training.version], {}))

    def take(self, training: Training, message: Message) -> None:
        name, reply = training.site, reply_of(message, TrainReply)
        if isinstance(reply, Failure):
            self.sites.fail("train", self.number, name, reply.code, reply.reason)
            return
        require_own(name, reply, training.number)
        staleness, most = self.number - 1 - training.version, self.config.asynchronous.max_staleness
        if most is not None and staleness > most:
            self.flight.ended(training)
            raise UpdateError(
                Problem(
                    code="FT523",
                    what=f"its update began {staleness} steps of the server ago, and at most {most} are "
                    "allowed",
                    where=f"round {self.number}, client {name}, asynchronous.max_staleness",
                    fix="raise asynchronous.buffer or asynchronous.max_staleness, if it happens often",
                )
            )
        where = f"round {self.number}, client {name}"
        record, current = arrays_of(message), self.filling.current
        sent = uplink_spec(self.config, self.spec, name)
        delta = decode(record, sent, self.aggregator.factors(1), self.config.updates, where=where)
        weight = weight_of(self.config, reply)
        counted = self.filling.add(name, read_uplink(self.config, delta, current), weight, staleness)
        self.flight.ended(training)
        self.sites.record(
            trained(
                name,
                reply,
                round_number=self.number,
                weight=counted,
                up=wire_bytes(record),
                down=wire_bytes(downlink(current, {})),
                norm=delta.norm,
                training=training.number,
                staleness=staleness,
                virtual_seconds=self.time(),
            )
        )

    def failed(self, training: Training) -> None:
        self._failures[training.site] = self._failures.get(training.site, 0) + 1
        self.flight.failed(training)
