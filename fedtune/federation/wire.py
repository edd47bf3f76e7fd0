"""What server and sites say to each other: typed requests and replies inside Flower records.

A message's `RecordDict` holds a `ConfigRecord` named ``fedtune`` with one JSON string under ``json``, and,
where an adapter or a delta travels, an `ArrayRecord` named ``arrays``. JSON is parsed into the frozen classes
below and into nothing else: an unknown field, a wrong type, a number out of range or a missing field is
an `UpdateError`, and nothing that arrives is ever imported or unpickled. Bytes of the secure-aggregation
protocol travel as the one array of an `ArrayRecord` named ``secagg``; `fedtune.secagg` parses them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fedtune.errors import Problem, UpdateError
from fedtune.models.adapter import Factor

__all__ = [
    "PROTOCOL",
    "EvaluateReply",
    "EvaluateRequest",
    "Failure",
    "HelloReply",
    "HelloRequest",
    "PreflightReply",
    "PreflightRequest",
    "SiteCheck",
    "TrainReply",
    "TrainRequest",
    "arrays_of",
    "content",
    "frame_of",
    "parse",
    "parse_reply",
    "with_frame",
]

PROTOCOL = 1
"""Version of the messages; both sides must speak the same one."""

MAX_JSON_CHARACTERS = 65_536
MAX_FRAME_BYTES = 2**31 - 1
RECORD, ARRAYS, SECAGG = "fedtune", "arrays", "secagg"

_STRICT = ConfigDict(extra="forbid", strict=True)
Count = Annotated[int, Field(ge=0, le=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=4_096)]
ConfigText = Annotated[str, Field(max_length=32_768)]
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z.+_!-]{1,64}$")]
Reasons = Annotated[tuple[Annotated[str, Field(pattern=r"^[a-z_.]{1,40}$")], ...], Field(max_length=40)]
Code = Annotated[str, Field(pattern=r"^FT[0-9]{3}$")]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class HelloRequest:
    """Asks a site who it is and whether it is ready: its data is read and its base model loaded."""

    kind: Literal["hello"] = "hello"
    protocol: Count = PROTOCOL


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class HelloReply:
    kind: Literal["hello"] = "hello"
    protocol: Count
    version: Text
    site: Text
    trains: bool
    """Whether it has anything to train on."""
    train_examples: Count | None
    held_out_examples: Count | None
    skipped_rows: Count | None
    base_name: Text
    base_hash: Text
    parameters: Count
    adapter_parameters: Count
    quantization: Text
    compute_dtype: Text
    load_seconds: Seconds


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainRequest:
    """Asks for one round of local training, starting from the adapter in ``arrays``.

    The round after the last asks for a site's own steps from the final adapter (``personal=fine_tuning``); no
    delta comes back.
    """

    kind: Literal["train"] = "train"
    round: Annotated[int, Field(ge=1, le=2**31)]
    factors: Annotated[tuple[Factor, ...], Field(min_length=1, max_length=2)]
    first_step: Count
    """Position of the round's first step on the federation's learning-rate schedule."""
    total_steps: Annotated[int, Field(ge=1, le=2**53)]
    """Length of that schedule: rounds that train x steps per round."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainReply:
    """Comes with the delta in ``arrays``, or with an advert for its secure sum in ``secagg``.

    What ``federation.metrics`` does not name is null.
    """

    kind: Literal["train"] = "train"
    site: Text
    round: Count
    examples: Count | None
    tokens: Count | None
    response_tokens: Count | None
    steps: Count
    loss_before: Finite | None
    loss_after: Finite | None
    started: Seconds
    finished: Seconds
    peak_memory_mib: Seconds | None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateRequest:
    """Asks for the held-out loss of the adapter in ``arrays``."""

    kind: Literal["evaluate"] = "evaluate"
    round: Count


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateReply:
    """A loss is null at a site that holds nothing out, has no such model, or does not say."""

    kind: Literal["evaluate"] = "evaluate"
    site: Text
    round: Count
    loss: Finite | None
    tokens: Count | None
    examples: Count | None
    started: Seconds
    finished: Seconds
    personal_loss: Finite | None = None
    """Of the model that is the site's own."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PreflightRequest:
    """Asks a site whether it is ready for a run; nothing is trained, and no approval is needed for an answer.

    The message belongs to a dry run of its own, whose configuration Flower's context has.
    """

    kind: Literal["preflight"] = "preflight"
    protocol: Count = PROTOCOL
    config: ConfigText
    """JSON of the configuration that is asked about."""
    to_be_approved: bool
    """Whether a run of this very name is to come, so that the site's operator may approve it now."""


CheckName = Literal[
    "keys", "joining", "site.yaml", "client.yaml", "configuration", "roster", "base model",
    "hash of the base model", "data", "rows", "memory", "threads", "folders", "disks", "clock", "other",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SiteCheck:
    """How one of a site's own checks ended; what it found stays there."""

    name: CheckName
    status: Literal["ok", "warning", "failed"]
    code: Code | None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PreflightReply:
    kind: Literal["preflight"] = "preflight"
    protocol: Count
    site: Text
    version: Version
    flwr: Version
    python: Version
    torch: Version
    train_refused: Reasons
    """Why the site's policy would refuse to train, as it tells them with FT640; empty if it would not."""
    evaluate_refused: Reasons
    approval: Literal["approved", "waits"]
    checks: Annotated[tuple[SiteCheck, ...], Field(max_length=100)]
    checks_age_seconds: Seconds
    """How long ago they were made: a site makes them once a minute at most."""
    days_left: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] | None
    """Until the first of the site's certificates ends; null if none is there."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Failure:
    """A site could not do what was asked: a stable code and one sentence."""

    kind: Literal["failure"] = "failure"
    site: Text
    code: Text
    reason: Text


T = TypeVar("T")
Body = (
    HelloRequest
    | HelloReply
    | TrainRequest
    | TrainReply
    | EvaluateRequest
    | EvaluateReply
    | PreflightRequest
    | PreflightReply
    | Failure
)


def content(body: Body, arrays: ArrayRecord | None = None) -> RecordDict:
    """Pack a request or a reply, and the arrays that go with it, into a message's content."""
    text = TypeAdapter(type(body)).dump_json(body).decode()
    records: dict[str, Any] = {RECORD: ConfigRecord({"json": text})}
    if arrays is not None:
        records[ARRAYS] = arrays
    return RecordDict(records)


def parse(message: Message, kind: type[T]) -> T:
    """Read the typed body of a message.

    Raises:
        UpdateError: FT520, with every field that is missing, unknown or out of range.
    """
    where = f"message {message.metadata.message_type} from node {message.metadata.src_node_id}"
    try:
        text = message.content[RECORD]["json"]
    except (KeyError, TypeError, ValueError):
        raise UpdateError(_problem(f"a {kind.__name__} was expected, got no JSON record", where)) from None
    if not isinstance(text, str) or len(text) > MAX_JSON_CHARACTERS:
        raise UpdateError(
            _problem(f"the JSON record must be text of at most {MAX_JSON_CHARACTERS} characters", where)
        )
    try:
        # JSON has no tuples: validate_json's strict mode knows that an array may become one.
        return TypeAdapter(kind).validate_json(text)
    except ValidationError as error:
        raise UpdateError(
            [
                _problem(
                    f"{detail['msg']}, got {str(detail['input'])[:80]!r}",
                    f"{where}, field {'.'.join(map(str, detail['loc'])) or '(whole record)'}",
                )
                for detail in error.errors(include_url=False)
            ]
        ) from None


def parse_reply(message: Message, kind: type[T]) -> T | Failure:
    """Read a reply that may be a `Failure` instead.

    Raises:
        UpdateError: FT520, the reply is neither.
    """
    try:
        return parse(message, Failure)
    except UpdateError:
        return parse(message, kind)


def with_frame(records: RecordDict, frame: bytes) -> RecordDict:
    """Add bytes of the secure-aggregation protocol to a message's content."""
    records[SECAGG] = ArrayRecord(
        {SECAGG: Array(dtype="uint8", shape=(len(frame),), stype=SECAGG, data=frame)}
    )
    return records


def frame_of(message: Message, *, at_most: int = MAX_FRAME_BYTES) -> bytes:
    """Return the bytes of the secure-aggregation protocol that came with a message, unread.

    Raises:
        UpdateError: FT520, there are none, or too many.
    """
    record = message.content.get(SECAGG)
    array = record.get(SECAGG) if isinstance(record, ArrayRecord) else None
    where = f"message {message.metadata.message_type}"
    if array is None:
        raise UpdateError(_problem("bytes of secure aggregation were expected, got none", where))
    if len(array.data) > at_most:
        what = f"{len(array.data):,} bytes of secure aggregation came, at most {at_most:,} can be meant"
        raise UpdateError(_problem(what, where))
    return bytes(array.data)


def arrays_of(message: Message) -> ArrayRecord:
    """Return the arrays that came with a message, unread.

    Raises:
        UpdateError: FT520, there are none.
    """
    record = message.content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise UpdateError(
            _problem("arrays were expected, got none", f"message {message.metadata.message_type}")
        )
    return record


def _problem(what: str, where: str) -> Problem:
    return Problem(
        code="FT520",
        what=what,
        where=where,
        fix="install the same fedtune on the server and on every site",
    )
