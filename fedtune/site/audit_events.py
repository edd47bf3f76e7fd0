"""What a site writes into its audit log: what was asked, what left, what was refused, what its operator did.

No event has a field for a value of a tensor, a row, or the words of an exception: hashes, names, sizes and
codes are all there is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np

__all__ = [
    "Event",
    "HasLeft",
    "OperatorActed",
    "SentTensor",
    "SiteStarted",
    "SiteStopped",
    "TailDropped",
    "WasAsked",
    "WasRefused",
    "details",
]

_LONGEST_TEXT = 512


@dataclass(frozen=True, kw_only=True)
class SiteStarted:
    """The site's process began to serve.

    Attributes:
        version: Of fedtune.
        policy: SHA-256 of the policy file in hex.
    """

    kind: ClassVar[str] = "started"
    version: str
    policy: str


@dataclass(frozen=True, kw_only=True)
class SiteStopped:
    """The site's process ended in order; a log that goes on without it tells of a crash.

    Attributes:
        reason: Why, in a few words of the site's own.
    """

    kind: ClassVar[str] = "stopped"
    reason: str


@dataclass(frozen=True, kw_only=True)
class WasAsked:
    """A message came.

    Attributes:
        run: The run that it belongs to.
        round: Its round; None where it belongs to none.
        message: Its type, such as ``train``.
        bundle: SHA-256 of the coordinator's bundle, in hex.
    """

    kind: ClassVar[str] = "asked"
    run: str
    round: int | None
    message: str
    bundle: str


@dataclass(frozen=True, kw_only=True)
class SentTensor:
    """A tensor that left, without its values.

    Attributes:
        name: As in the message.
        shape: As in the message.
        dtype: As in the message.
        bytes: Its size.
        norm: Its L2 norm; None if that is no finite number.
        sha256: Of its values as they are sent, in C order, in hex.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    norm: float | None
    sha256: str

    @classmethod
    def of(cls, name: str, tensor: np.ndarray[Any, np.dtype[Any]]) -> SentTensor:
        """Describe a tensor."""
        values = np.ascontiguousarray(tensor)
        norm = float(np.linalg.norm(values.astype(np.float64).ravel()))
        return cls(
            name=name,
            shape=tensor.shape,
            dtype=tensor.dtype.name,
            bytes=tensor.nbytes,
            norm=norm if math.isfinite(norm) else None,
            sha256=hashlib.sha256(values.tobytes()).hexdigest(),
        )


@dataclass(frozen=True, kw_only=True)
class HasLeft:
    """An answer was made and is handed to the network.

    Attributes:
        run: As in `WasAsked`.
        round: Likewise.
        message: Likewise.
        bytes: Size of all that the answer carries.
        tensors: Those that it carries in clear.
        sealed: SHA-256 of the bytes of secure aggregation that it carries, in hex; None for none.
        metrics: Names of the site's own numbers that it tells.
    """

    kind: ClassVar[str] = "left"
    run: str
    round: int | None
    message: str
    bytes: int
    tensors: tuple[SentTensor, ...] = ()
    sealed: str | None = None
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WasRefused:
    """A message was not obeyed.

    Attributes:
        run: As in `WasAsked`.
        round: Likewise.
        message: Likewise.
        bundle: Likewise.
        code: The code that the coordinator was told, such as ``FT640``.
        reasons: The reasons of a policy, as in `fedtune.site.policy.Decision`.
    """

    kind: ClassVar[str] = "refused"
    run: str
    round: int | None
    message: str
    bundle: str
    code: str
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OperatorActed:
    """The site's operator decided something.

    Attributes:
        action: What.
        subject: What it is about: a run, a hash, or the site itself.
        operator: Who.
        reason: Why, in the operator's words; empty where none was asked for.
    """

    kind: ClassVar[str] = "operator"
    action: Literal["approve", "pause", "resume", "stop", "leave", "release"]
    subject: str
    operator: str
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class TailDropped:
    """A last line without its end, left by a crash, was cut away when the log was next written.

    Attributes:
        bytes: How many.
        sha256: Of them, in hex.
    """

    kind: ClassVar[str] = "tail_dropped"
    bytes: int
    sha256: str


Event: TypeAlias = SiteStarted | SiteStopped | WasAsked | HasLeft | WasRefused | OperatorActed | TailDropped


def details(event: Event) -> dict[str, Any]:
    """Return the fields of an event as JSON can hold them.

    A text from outside may be as long as its sender likes: longer ones than 512 characters are cut, and end
    in an ellipsis.
    """
    return {key: _bounded(value) for key, value in dataclasses.asdict(event).items()}


def _bounded(value: Any) -> Any:
    if isinstance(value, str):
        return value if len(value) <= _LONGEST_TEXT else value[: _LONGEST_TEXT - 1] + "…"
    if isinstance(value, Mapping):
        return {key: _bounded(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_bounded(item) for item in value]
    return value
