"""A message that would leave, as it is shown: its fields one by one, and its tensors by groups."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fedtune.config.derived import keeps_own_model
from fedtune.config.schema import Config
from fedtune.site.policy_schema import SitePolicy
from fedtune.site.preview.meanings import MEANINGS, UNKNOWN

__all__ = ["Described", "Field", "TensorGroup", "described_fields", "grouped"]

Leaves = Literal["leaves", "null", "refused"]
"""A field leaves; it is there and says null; or the policy refuses the whole request because of it."""

_NUMBER: Final = re.compile(r"(?<=\.)\d+(?=\.)")
_WORDS: Final[Mapping[Any, str]] = {
    bool: "yes or no",
    int: "whole number",
    float: "number",
    str: "text",
    bytes: "bytes",
    memoryview: "bytes",
}


@dataclass(frozen=True, kw_only=True)
class Field:
    """One field of a message.

    Attributes:
        name: As in the message; of a part of it, ``part.name``.
        type: In words.
        meaning: What it says.
        leaves: Whether its value leaves.
        because: Which setting decides that; None if none does.
        value: What it really was, in a trial; else None.
    """

    name: str
    type: str
    meaning: str
    leaves: Leaves
    because: str | None = None
    value: Any = None


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """Tensors of the same place in different layers.

    Attributes:
        name: Their name, with ``*`` for the number of the layer.
        names: Their names, in the order of the layers.
        shape: Of each.
        dtype: Of its entries before they are encoded.
        bytes: That all of them take on the wire.
        masked: Whether they leave under masks alone.
        norms: In a trial, the L2 norm of each tensor's change, in the order of the names.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    masked: bool
    norms: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Described:
    """One message.

    Attributes:
        stage: What the coordinator asked for: hello, train, secagg or evaluate.
        name: Of the type that is sent.
        when: In words.
        in_round: Whether it is sent in the round that is shown, if all goes well.
        fields: All of them.
        tensors: What travels beside them.
        bytes: Of the whole message, without Flower's framing.
    """

    stage: str
    name: str
    when: str
    in_round: bool
    fields: tuple[Field, ...]
    tensors: tuple[TensorGroup, ...] = ()
    bytes: int


def described_fields(
    kind: type, config: Config, policy: SitePolicy | None, *, within: str = ""
) -> tuple[Field, ...]:
    """Every field that a type has, whether its meaning is known or not.

    Args:
        kind: A dataclass that is sent.
        config: Its ``federation.metrics`` says what a coordinator asks for.
        policy: Its ``metrics`` says what may leave; None where it is not known.
        within: The field of another message that this one is a part of.
    """
    hints = typing.get_type_hints(kind)
    return tuple(
        _field(kind, field.name, hints[field.name], config, policy, within=within)
        for field in dataclasses.fields(kind)
    )


def _field(
    kind: type, name: str, hint: Any, config: Config, policy: SitePolicy | None, *, within: str
) -> Field:
    meaning = MEANINGS.get(kind, {}).get(name, UNKNOWN)
    metric = meaning.metric
    leaves: Leaves = "leaves"
    because = None
    if metric is not None and metric not in config.federation.metrics:
        leaves, because = "null", f"federation.metrics does not name {metric}"
    elif metric is not None and policy is not None and metric not in policy.metrics:
        leaves, because = "refused", f"federation.metrics names {metric}, the policy does not"
    elif metric == "personal_loss" and not keeps_own_model(config):
        leaves, because = "null", "sites have no models of their own in this run"
    elif metric is not None:
        because = f"federation.metrics names {metric}"
    return Field(
        name=f"{within}.{name}" if within else name,
        type=in_words(hint),
        meaning=meaning.text,
        leaves=leaves,
        because=because,
    )


def in_words(hint: Any) -> str:
    """A type as a person reads it."""
    origin = typing.get_origin(hint)
    arguments = [argument for argument in typing.get_args(hint) if argument is not types.NoneType]
    if origin in (typing.Union, types.UnionType):
        kinds = list(dict.fromkeys(in_words(argument) for argument in arguments))
        return " or ".join(kinds)
    if origin is typing.Literal:
        return "text" if all(isinstance(value, str) for value in arguments) else "whole number"
    if origin in (tuple, frozenset, set, list):
        return "list"
    for known, words in _WORDS.items():
        if hint is known or (isinstance(hint, type) and issubclass(hint, known)):
            return words
    return getattr(hint, "__name__", str(hint))


def grouped(
    shapes: Mapping[str, tuple[int, ...]], sizes: Mapping[str, int], *, dtype: str, masked: bool
) -> tuple[TensorGroup, ...]:
    """Put tensors together that differ in the number of their layer alone.

    Args:
        shapes: Name to shape.
        sizes: Name to bytes on the wire.
        dtype: Of their entries.
        masked: As in `TensorGroup`.
    """
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in sorted(shapes, key=_by_layer):
        groups.setdefault((_NUMBER.sub("*", name), shapes[name]), []).append(name)
    return tuple(
        TensorGroup(
            name=pattern if len(names) > 1 else names[0],
            names=tuple(names),
            shape=shape,
            dtype=dtype,
            bytes=sum(sizes[name] for name in names),
            masked=masked,
        )
        for (pattern, shape), names in groups.items()
    )


def _by_layer(name: str) -> list[tuple[bool, int, str]]:
    """Sort layer 10 behind layer 9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]
