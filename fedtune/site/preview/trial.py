"""One real step of training at this site, answered by the very handlers that answer a coordinator.

The messages go from this process to itself. Nothing is sent, and the site's own state is left as it was: the
step's memory lies in a folder that is gone afterwards.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from flwr.app import Message, RecordDict

from fedtune.aggregation.control import as_controls
from fedtune.aggregation.registry import aggregator
from fedtune.config.derived import secure_clip
from fedtune.config.schema import Config
from fedtune.errors import FederationError, Problem
from fedtune.federation.client import build_client_app
from fedtune.federation.controls import read_controls, with_controls
from fedtune.federation.dialogue import MESSAGE_TYPES, Stage, flower_failure
from fedtune.federation.requests import train_request
from fedtune.federation.uplink import uplink_spec
from fedtune.federation.wire import (
    EvaluateReply,
    EvaluateRequest,
    Failure,
    HelloReply,
    HelloRequest,
    TrainReply,
    arrays_of,
    content,
    parse_reply,
)
from fedtune.models.adapter import Adapter, AdapterSpec, initial_adapter
from fedtune.simulation.grid import InProcessGrid
from fedtune.site.deployed import DeployedSite
from fedtune.site.folder import SiteFolder
from fedtune.site.preview.outgoing import Preview
from fedtune.updates.codec import to_arrays
from fedtune.updates.decode import decode

__all__ = ["Trial", "try_one_step", "with_trial"]

_NODE: Final = 2  # nodes 0 and 1 mean "none" and "the server" to Flower

Reply = TypeVar("Reply", HelloReply, TrainReply, EvaluateReply)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the site really answered.

    Attributes:
        replies: One of each type.
        norms: Name of each tensor of the update to its L2 norm.
    """

    replies: tuple[HelloReply | TrainReply | EvaluateReply, ...]
    norms: Mapping[str, float]


def try_one_step(config: Config, *, site: str, round_number: int = 1) -> Trial:
    """Answer a greeting, train one step on this site's own rows, and evaluate.

    Args:
        config: The federation's, as it holds on this machine (`fedtune.site.settings.here`).
        site: The site's name.
        round_number: The round whose factors are trained.

    Raises:
        DataError: Every problem of the rows.
        FederationError: FT609 and the like, as the site would have answered.
        ModelError: The model cannot be loaded.
    """
    step = dataclasses.replace(config.training, steps_per_round=1)
    plain = dataclasses.replace(config.secagg, enabled=False)
    config = dataclasses.replace(config, training=step, secagg=plain)
    with tempfile.TemporaryDirectory(prefix="fedtune-preview-") as folder:
        deployed = DeployedSite(
            folder=SiteFolder(Path(folder)),
            name=site,
            audit_head=lambda: bytes(32),
            on_step=_untold,
            on_microbatch=_untold,
            on_model=_untold,
        )
        rehearsal = deployed.of(config, base_name=config.model.name)
        grid = InProcessGrid(build_client_app(lambda _: rehearsal), 1)
        return _answered(grid, rehearsal.model().spec, config, round_number)


def _untold(*_: object) -> None:
    """Take no notice."""


def _answered(grid: InProcessGrid, spec: AdapterSpec, config: Config, round_number: int) -> Trial:
    adapter = initial_adapter(spec, config.seed)
    start = to_arrays(adapter)
    request = train_request(config, aggregator(config.aggregation, clip=secure_clip(config)), round_number)
    hello, _ = _ask(grid, "hello", content(HelloRequest()), HelloReply)
    controlled = config.training.control_variates
    asked = with_controls(start, adapter, {}, spec, request.factors) if controlled else start
    trained, update = _ask(grid, "train", content(request, asked), TrainReply)
    evaluated, _ = _ask(grid, "evaluate", content(EvaluateRequest(round=0), start), EvaluateReply)
    where, expected = "this site's own reply", uplink_spec(config, spec, trained.site)
    record, change = arrays_of(update), Adapter()
    if controlled:
        record, change = read_controls(record, expected, request.factors, config.updates, where=where)
    decoded = decode(record, expected, request.factors, config.updates, where=where)
    tensors = dict(decoded.tensors) | as_controls(change)
    return Trial(
        replies=(hello, trained, evaluated),
        norms={name: float(np.linalg.norm(tensor.astype(np.float64))) for name, tensor in tensors.items()},
    )


def _ask(grid: InProcessGrid, stage: Stage, body: RecordDict, expect: type[Reply]) -> tuple[Reply, Message]:
    (message,) = grid.send_and_receive([Message(body, _NODE, MESSAGE_TYPES[stage])])
    failure = flower_failure(message)
    reply = parse_reply(message, expect) if failure is None else failure
    if isinstance(reply, Failure):
        raise FederationError(
            Problem(
                code=reply.code,
                what=f"this is what the coordinator would hear: {reply.reason}",
                where=f"trial of {stage}",
                fix="run fedtune client doctor; the log above says more",
            )
        )
    return reply, message


def with_trial(shown: Preview, trial: Trial) -> Preview:
    """Put what was really answered into a preview."""
    answers: dict[str, Any] = {type(reply).__name__: reply for reply in trial.replies}
    messages = []
    for message in shown.messages:
        reply = answers.get(message.name)
        fields = tuple(
            field if reply is None else dataclasses.replace(field, value=getattr(reply, field.name))
            for field in message.fields
        )
        tensors = tuple(
            dataclasses.replace(
                group, norms=tuple(trial.norms[name] for name in group.names if name in trial.norms)
            )
            for group in message.tensors
        )
        messages.append(dataclasses.replace(message, fields=fields, tensors=tensors))
    return dataclasses.replace(shown, messages=tuple(messages))
