"""What all events have in common: a time, and how strictly their fields are taken."""

from __future__ import annotations

import math
import numbers
import time as clock
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = ["STRICT", "Count", "Event", "Measured", "Positive", "Seconds"]


def _plain_number(value: Any) -> Any:
    """Turn numpy's scalars into Python's; leave everything else for the validator to judge."""
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    return value


def _finite_or_none(value: Any) -> Any:
    value = _plain_number(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


Count = Annotated[int, BeforeValidator(_plain_number), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_plain_number), Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, BeforeValidator(_plain_number), Field(ge=0, allow_inf_nan=False)]
Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]

STRICT = ConfigDict(extra="forbid", strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Event:
    """Base of all events."""

    name_on_disk: ClassVar[str] = ""
    stored: ClassVar[bool] = True

    time: Seconds = Field(default_factory=clock.time)
    """When it was recorded, in unix seconds."""
