"""What the desk reads of a message before anything of it is believed, and of an answer before it leaves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from flwr.app import ArrayRecord, Context, Message

from fedtune.config.schema import Metric
from fedtune.federation.run_config import CONFIG_KEY
from fedtune.federation.wire import MAX_JSON_CHARACTERS, RECORD, EvaluateReply, HelloReply, TrainReply
from fedtune.site.preview.meanings import MEANINGS
from fedtune.updates.codec import wire_bytes

__all__ = ["KINDS", "METRIC_OF_FIELD", "Kind", "body_of", "round_of", "run_of", "size_of", "told_metrics"]

Kind = Literal["hello", "train", "secagg", "evaluate"]
KINDS: Final[dict[str, Kind]] = {
    "query.hello": "hello",
    "train": "train",
    "query.secagg": "secagg",
    "evaluate": "evaluate",
}
METRIC_OF_FIELD: Final[Mapping[str, Metric]] = MappingProxyType(
    {
        name: meaning.metric
        for reply in (HelloReply, TrainReply, EvaluateReply)
        for name, meaning in MEANINGS[reply].items()
        if meaning.metric is not None
    }
)
"""Field of a reply -> the metric that it tells."""


def told_metrics(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of a site's numbers that a reply tells, in the order of the policy's list.

    Args:
        body: The reply's JSON.
    """
    told = {metric for name, metric in METRIC_OF_FIELD.items() if body.get(name) is not None}
    return tuple(metric for metric in get_args(Metric) if metric in told)


def run_of(context: Context) -> str:
    """Return the run's name as the coordinator says it, before anything of its configuration is believed."""
    try:
        name = json.loads(str(context.run_config[CONFIG_KEY]))["name"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return "?"
    return name if isinstance(name, str) else "?"


def round_of(message: Message) -> int | None:
    number = body_of(message).get("round")
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def body_of(message: Message) -> Mapping[str, Any]:
    """Return the JSON that a message carries, unchecked; nothing if it carries none."""
    record = message.content.get(RECORD) if message.has_content() else None
    try:
        body = json.loads(str(record["json"])[:MAX_JSON_CHARACTERS]) if record is not None else {}
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def size_of(message: Message) -> int:
    """Return the bytes of a message's arrays and JSON."""
    if not message.has_content():
        return 0
    arrays = (record for record in message.content.values() if isinstance(record, ArrayRecord))
    return len(json.dumps(body_of(message))) + sum(wire_bytes(record) for record in arrays)
