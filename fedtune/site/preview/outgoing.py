"""Every message that a site would send in a round of a given configuration."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, get_args

import numpy as np

import fedtune
from fedtune.aggregation.control import control_name
from fedtune.aggregation.registry import aggregator
from fedtune.config.derived import secure_clip, update_bytes
from fedtune.config.methods import method
from fedtune.config.schema import Config
from fedtune.federation.dialogue import MESSAGE_TYPES
from fedtune.federation.requests import train_request
from fedtune.federation.secure import round_encoding
from fedtune.federation.uplink import uplink_spec
from fedtune.federation.wire import (
    PROTOCOL,
    RECORD,
    CheckName,
    EvaluateReply,
    Failure,
    HelloReply,
    PreflightReply,
    SiteCheck,
    TrainReply,
    content,
)
from fedtune.models.adapted import adapter_spec
from fedtune.models.adapter import AdapterSpec, Factor
from fedtune.secagg.encoding import Encoding
from fedtune.secagg.messages import Kind, Refusal, Signed
from fedtune.secagg.roster import Roster
from fedtune.site.policy_schema import SitePolicy
from fedtune.site.preview.described import Described, Field, TensorGroup, described_fields, grouped
from fedtune.site.preview.frames import Frame, frame_length, round_frames
from fedtune.updates.codec import to_arrays, wire_bytes

__all__ = ["NEVER", "Preview", "preview"]

NEVER: Final = (
    "rows, prompts, responses and their tokens",
    "the update of this site alone, if secure aggregation is on",
    "names and paths of data files, and their columns",
    "the policy's limits and why they are what they are",
    "the optimizer's states, and which rows were used when",
    "private keys, and the site's logs but for the hash at the head of its audit log",
)
"""What no message has a field for."""

BESIDE: Final = (
    "Flower adds to each message the numbers of run, node and message, and the time",
    "the SuperNode signs each call with its node key and the time, and asks every few seconds for messages",
    "the server sees the address from which the site, or its proxy, connects",
)
"""What travels with every message."""

_SAMPLES: Final[Mapping[type, Any]] = {
    bool: True,
    int: 1_000_000,
    float: 1_234_567_890.1234567,
    str: "x" * 24,
}
_FRAME_STAGE: Final = "secagg"


@dataclass(frozen=True, kw_only=True)
class Preview:
    """All that would leave.

    Attributes:
        run: Name of the run.
        site: Name of the site.
        round: Number of the round.
        rounds: How many there are.
        secure: Whether updates leave under masks alone.
        messages: In the order in which they are sent; the last may be sent in place of any other.
        refused: What the policy refuses, in the operator's words: then nothing leaves but a `Failure`.
        never: What never leaves.
        beside: What travels with every message.
    """

    run: str
    site: str
    round: int
    rounds: int
    secure: bool
    messages: tuple[Described, ...]
    refused: tuple[str, ...]
    never: tuple[str, ...] = NEVER
    beside: tuple[str, ...] = BESIDE

    @property
    def bytes_a_round(self) -> int:
        """Of the messages that this round sends if all goes well, without Flower's framing."""
        return sum(message.bytes for message in self.messages if message.in_round)


def preview(
    config: Config,
    *,
    site: str,
    policy: SitePolicy | None,
    roster: Roster | None,
    round_number: int = 1,
    refused: tuple[str, ...] = (),
) -> Preview:
    """Describe every message of a round. The base model's description is read, and none of its weights.

    Args:
        config: The federation's, with this site's model.
        site: The site's name.
        policy: What the site allows; None where it is not known.
        roster: The version that the site accepted; needed for secure aggregation alone.
        round_number: Which round: some methods train other factors in every second one.
        refused: What the policy refuses, in the operator's words.

    Raises:
        ModelError: FT301 to FT307, the model's files or the target list.
        SecureAggregationError: FT914 to FT916, a round that cannot be encoded.
        ValueError: Secure aggregation without a roster.
    """
    request = train_request(config, aggregator(config.aggregation, clip=secure_clip(config)), round_number)
    spec = adapter_spec(config.model, config.peft)
    teller = _Teller(config=config, policy=policy, site=site, round=round_number)
    encoding = None
    frames: tuple[Frame, ...] = ()
    if config.secagg.enabled:
        if roster is None:
            raise ValueError("secure aggregation needs a roster")
        encoding = round_encoding(config, spec, request.factors, roster)
        frames = round_frames(config, encoding, roster, round_number)
    return Preview(
        run=config.name,
        site=site,
        round=round_number,
        rounds=config.federation.rounds,
        secure=config.secagg.enabled,
        messages=tuple(_messages(teller, spec, request.factors, encoding, frames)),
        refused=refused,
    )


def _messages(
    teller: _Teller,
    spec: AdapterSpec,
    factors: tuple[Factor, ...],
    encoding: Encoding | None,
    frames: tuple[Frame, ...],
) -> Iterator[Described]:
    asked = "when the coordinator asks before a run whether this site is ready"
    yield teller.reply("preflight", PreflightReply, asked, parts={"checks": SiteCheck}, in_round=False)
    yield teller.reply("hello", HelloReply, "once, before the first round", in_round=False)
    if encoding is None:
        sketches = method(teller.config.aggregation.method).sketches
        what = "two sketches of the trained product for each layer" if sketches else "the update"
        update = _plain_tensors(teller.config, uplink_spec(teller.config, spec, teller.site), factors)
        if teller.config.training.control_variates:
            what += ", and the change of this site's control variates, which are mean gradients"
            update += _control_tensors(update)
        yield teller.reply("train", TrainReply, f"when training is done: {what}", tensors=update)
    else:
        yield teller.reply("train", TrainReply, "when training is done; the update stays here")
        for frame in frames:
            masked = _masked_tensors(encoding, spec.dtype) if frame.kind is Kind.MASKED else ()
            yield teller.frame(frame, masked)
    yield teller.evaluation()
    if frames:
        yield teller.refusal()
    yield teller.reply("any", Failure, "in place of any other, if something fails", in_round=False)


@dataclass(frozen=True, kw_only=True)
class _Teller:
    config: Config
    policy: SitePolicy | None
    site: str
    round: int

    def fields(self, kind: type, *, within: str = "") -> tuple[Field, ...]:
        return described_fields(kind, self.config, self.policy, within=within)

    def reply(
        self,
        stage: str,
        kind: type,
        when: str,
        *,
        tensors: tuple[TensorGroup, ...] = (),
        parts: Mapping[str, type] | None = None,
        in_round: bool = True,
    ) -> Described:
        fields = self.fields(kind)
        sample = kind(**{field.name: self._sample(kind, field) for field in fields})
        text = content(sample)[RECORD]["json"]
        return Described(
            stage=stage,
            name=kind.__name__,
            when=when,
            in_round=in_round,
            fields=(*fields, *self._packed((parts or {}).items())),
            tensors=tensors,
            bytes=len(str(text).encode()) + sum(group.bytes for group in tensors),
        )

    def evaluation(self) -> Described:
        rounds, every = self.config.federation.rounds, self.config.evaluation.every_rounds
        due = self.round == rounds or (every > 0 and self.round % every == 0)
        often = f"after every {every} rounds, " if every > 1 else "after each round, " if every else ""
        asked = self.config.evaluation.clients
        drawn = "" if asked is None else f", if this site is among the {asked} that are drawn for it"
        when = f"before the first round, {often}after the last: the loss on held-out rows{drawn}"
        return self.reply("evaluate", EvaluateReply, when, in_round=due)

    def frame(self, frame: Frame, tensors: tuple[TensorGroup, ...]) -> Described:
        return Described(
            stage="train" if frame.kind is Kind.ADVERT else _FRAME_STAGE,
            name=frame.kind.name,
            when=frame.when,
            in_round=True,
            fields=(*self._envelope(), *self.fields(frame.body), *self._packed(frame.parts)),
            tensors=tensors,
            bytes=frame.bytes,
        )

    def refusal(self) -> Described:
        refusal = Refusal(transcript=bytes(32), code="FT901", reason=_SAMPLES[str])
        return Described(
            stage=_FRAME_STAGE,
            name=Kind.REFUSED.name,
            when="in place of any message of secure aggregation, if a check fails",
            in_round=False,
            fields=(*self._envelope(), *self.fields(Refusal)),
            bytes=frame_length(Kind.REFUSED, refusal.encode()),
        )

    def _packed(self, parts: Iterable[tuple[str, type]]) -> tuple[Field, ...]:
        return tuple(field for name, kind in parts for field in self.fields(kind, within=name))

    def _envelope(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields(Signed) if field.name != "body")

    def _sample(self, kind: type, field: Field) -> Any:
        """A value such as the field will have: what is known of it, else one of its type."""
        if field.leaves != "leaves":
            return None
        known: dict[str, Any] = {
            "site": self.site,
            "round": self.round,
            "version": fedtune.__version__,
            "protocol": PROTOCOL,
            "base_name": self.config.model.name,
            "base_hash": "0" * 64,
            "quantization": self.config.model.quantization,
            "steps": self.config.training.steps_per_round,
            "train_refused": (),
            "evaluate_refused": (),
            "checks": tuple(SiteCheck(name=name, status="ok", code=None) for name in get_args(CheckName)),
        }
        if field.name in known:
            return known[field.name]
        hint = typing.get_type_hints(kind)[field.name]
        choices = [choice for choice in get_args(hint) or (hint,) if choice is not type(None)]
        return choices[0] if isinstance(choices[0], str) else _SAMPLES[choices[0]]


def _plain_tensors(config: Config, spec: AdapterSpec, factors: tuple[Factor, ...]) -> tuple[TensorGroup, ...]:
    shapes = {name: spec.shapes[name] for name in spec.names(factors)}
    itemsize = np.dtype(spec.dtype).itemsize
    if config.updates.quantization == "none":
        sizes = {
            name: wire_bytes(to_arrays({name: np.zeros(shape, dtype=spec.dtype)}))
            for name, shape in shapes.items()
        }
    else:
        sizes = {
            name: update_bytes(config, [prod(shape)], itemsize=itemsize) for name, shape in shapes.items()
        }
    return grouped(shapes, sizes, dtype=spec.dtype, masked=False)


def _control_tensors(update: tuple[TensorGroup, ...]) -> tuple[TensorGroup, ...]:
    return tuple(
        dataclasses.replace(
            group,
            name=control_name(group.name),
            names=tuple(control_name(name) for name in group.names),
            bytes=group.bytes + len(group.names) * len(control_name("")),
        )
        for group in update
    )


def _masked_tensors(encoding: Encoding, dtype: str) -> tuple[TensorGroup, ...]:
    shapes = {tensor.name: tensor.shape for tensor in encoding.tensors}
    sizes = {tensor.name: tensor.size * encoding.dtype.itemsize for tensor in encoding.tensors}
    summed = f"{' and '.join(encoding.lane_names)} of this site"
    lanes = TensorGroup(
        name=summed,
        names=(summed,),
        shape=(len(encoding.lane_names),),
        dtype="uint64",
        bytes=8 * len(encoding.lane_names),
        masked=True,
    )
    return (*grouped(shapes, sizes, dtype=dtype, masked=True), lanes)


def as_json(shown: Preview) -> dict[str, Any]:
    """The preview as JSON can hold it; the keys are an interface."""
    body: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(shown), default=str))
    return body | {"bytes_a_round": shown.bytes_a_round}


STAGES: Final = (*MESSAGE_TYPES, "any")
"""What a message may be an answer to."""
