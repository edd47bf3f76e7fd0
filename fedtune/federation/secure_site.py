"""A site's part of a secure round: is the adapter one that may be trained, is the update spent, hold it.

What a server could gain by asking for more is refused here, before anything is trained: a crafted adapter
(FT917), an update that was opened before (FT912), a round behind the one that this site has seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedtune.aggregation.registry import aggregator
from fedtune.aggregation.sketched_change import product_bounds
from fedtune.config.derived import secure_clip
from fedtune.config.methods import method as known_method
from fedtune.config.schema import Config
from fedtune.data.tokenize import TokenizedExample
from fedtune.federation.kept_training import Training, fit_origin, nothing_to_fit
from fedtune.federation.requests import train_request
from fedtune.federation.secure import SERVER_STEP, round_encoding, training_hash
from fedtune.federation.wire import TrainRequest
from fedtune.models.adapter import Adapter, AdapterSpec, initial_adapter
from fedtune.observability.disk import write_atomic
from fedtune.secagg.broadcast import check_later_adapter, check_start_adapter
from fedtune.secagg.broadcast_product import check_later_product
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.hashes import adapter_hash, samples_hash
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import Roster
from fedtune.secagg.rounding import EncodedUpdate, encode_update
from fedtune.secagg.spent import SpentJournal, UpdateOrigin
from fedtune.secagg.states import RoundFacts
from fedtune.updates.protect import Protected

__all__ = ["ReceivedAdapter", "SecureMember", "SecureSite"]


class SecureMember(Protocol):
    """What keeps this site's secrets in memory: a `SecureAggregationClient`, or the way to one."""

    def hold(self, update: EncodedUpdate, encoding: Encoding, facts: RoundFacts) -> None: ...

    def holds(self, facts: RoundFacts) -> bool: ...

    def handle(self, request: bytes) -> bytes: ...


class ReceivedAdapter:
    """The adapter that this site was last asked to train, with its round, on its own disk.

    Args:
        path: A safetensors file; it holds nothing that the server does not know.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> tuple[int, Adapter] | None:
        """Return round and adapter; None before the first.

        Raises:
            SecureAggregationError: FT919, the file is damaged.
        """
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="numpy") as file:
                round_number = int(file.metadata()["round"])
                return round_number, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise refusal(
                "FT919", f"the adapter received last cannot be read: {error}", where=str(self._path)
            ) from None

    def write(self, round_number: int, adapter: Adapter) -> None:
        """Replace it, whole or not at all."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, save(adapter, {"round": str(round_number)}))


@dataclass(frozen=True, kw_only=True)
class SecureSite:
    """What a site has for secure aggregation; one for as long as its process lives.

    Attributes:
        roster: The pinned version.
        spent: Journal of opened updates.
        member: Keeper of the update and of the attempt's secrets.
        received: The adapter of the round before.
        weight: What this site declares in the roster.
        audit_head: Head of this site's own record, 32 bytes, which its adverts sign.
    """

    roster: Roster
    spent: SpentJournal
    member: SecureMember
    received: ReceivedAdapter
    weight: int
    audit_head: Callable[[], bytes]

    def admit(self, request: TrainRequest, adapter: Adapter, config: Config, spec: AdapterSpec) -> None:
        """Refuse what honest rounds cannot ask for; remember the adapter of one that they can.

        A server that could choose factors or schedule would get many updates from the same rows, each close
        to the others and none of them spent.

        Raises:
            SecureAggregationError: FT906, a request that does not follow from the configuration; FT917 with
                every tensor that differs or moved too far, or a round that lies behind the one seen last.
        """
        expected = train_request(
            config, aggregator(config.aggregation, clip=secure_clip(config)), request.round
        )
        if request != expected or request.round > config.federation.rounds:
            what = f"the server asks for {_asked(request)}, the configuration says {_asked(expected)}"
            raise refusal("FT906", what, where=f"round {request.round} of {config.federation.rounds}")
        known = self.received.read()
        if known is None or known[0] < request.round:
            seen, previous = known or (1, initial_adapter(spec, config.seed))
            if request.round == 1:
                check_start_adapter(adapter, previous)
            else:
                self._check_step(request.round, adapter, seen, previous, config=config, spec=spec)
            self.received.write(request.round, adapter)
        elif known[0] > request.round:
            what = f"the server goes back to round {request.round}, this site has seen round {known[0]}"
            raise refusal("FT917", what, where=f"round {request.round}")
        else:
            check_start_adapter(adapter, known[1])

    def _check_step(
        self, to: int, adapter: Adapter, since: int, previous: Adapter, *, config: Config, spec: AdapterSpec
    ) -> None:
        clip = secure_clip(config)
        if clip is not None and known_method(config.aggregation.method).sketches:
            check_later_product(adapter, previous, product_bounds(spec.shapes, clip), rounds=to - since)
            return
        method = aggregator(config.aggregation, clip=clip)
        trained = {factor for number in range(since, to) for factor in method.factors(number)}
        encoding = round_encoding(config, spec, tuple(sorted(trained)), self.roster)
        check_later_adapter(
            adapter,
            previous,
            bounds={tensor.name: tensor.bound for tensor in encoding.tensors},
            excess=encoding.excess,
            server_step=SERVER_STEP,
            rounds=to - since,
        )

    def facts(
        self,
        request: TrainRequest,
        adapter: Adapter,
        rows: Sequence[TokenizedExample],
        *,
        config: Config,
        base_hash: str,
    ) -> RoundFacts:
        """Return what this site knows about the round that it was asked for.

        Raises:
            SecureAggregationError: FT912, this very update was opened before.
        """
        origin = UpdateOrigin(
            base=bytes.fromhex(base_hash),
            adapter=adapter_hash(adapter),
            config=training_hash(config, request),
            samples=samples_hash((row.token_ids, row.loss_mask) for row in rows),
        )
        facts = RoundFacts(run=config.name, round=request.round, origin=origin, audit_head=self.audit_head())
        if not self.member.holds(facts):
            self.spent.check(origin)
        return facts

    def facts_of_fit(
        self,
        request: TrainRequest,
        adapter: Adapter,
        training: Training | None,
        *,
        config: Config,
        base_hash: str,
    ) -> RoundFacts:
        """Return what this site knows about a round that fits what it trained in the round before.

        Raises:
            FederationError: FT615, it trained nothing then, or its update was not opened.
            SecureAggregationError: FT912, that training was fitted before, to this A or another.
        """
        if training is None:
            raise nothing_to_fit(request.round, f"this site keeps no training of round {request.round - 1}")
        if not self.spent.holds(training.origin):
            what = f"this site's update of round {request.round - 1} was not opened"
            raise nothing_to_fit(request.round, what)
        origin = UpdateOrigin(
            base=bytes.fromhex(base_hash),
            adapter=adapter_hash(adapter),
            config=training_hash(config, request),
            samples=training.origin.samples,
        )
        facts = RoundFacts(
            run=config.name,
            round=request.round,
            origin=origin,
            audit_head=self.audit_head(),
            made_of=fit_origin(training.origin),
        )
        if not self.member.holds(facts):
            self.spent.check(facts.spent_as)
        return facts

    def hold(
        self, update: Protected, facts: RoundFacts, request: TrainRequest, config: Config, spec: AdapterSpec
    ) -> None:
        """Encode a protected update and keep it until its sum is opened.

        Raises:
            SecureAggregationError: As `encode_update` and `SecureAggregationClient.hold`.
        """
        encoding = round_encoding(config, spec, request.factors, self.roster)
        weight = self.weight if encoding.max_weight > 1 else 1
        self.member.hold(encode_update(update.tensors, encoding, weight=weight), encoding, facts)


def _asked(request: TrainRequest) -> str:
    factors = " and ".join(request.factors)
    return f"{factors} from step {request.first_step} of {request.total_steps}"
