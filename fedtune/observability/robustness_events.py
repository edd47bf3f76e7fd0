"""Events of false sites: whether a planted backdoor works, and whether an aggregate was turned away."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedtune.observability.event_base import STRICT, Count, Event, Measured, Seconds

__all__ = ["BackdoorMeasured", "GateJudged", "GroupDropped"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BackdoorMeasured(Event):
    """How often the federated model of a simulation gives the answer that false sites planted.

    A prompt counts as a success where the target's loss, in nats per token, is below the right answer's.
    """

    name_on_disk: ClassVar[str] = "backdoor_measured"

    prompts: Count
    """Held-out prompts; those whose right answer is the target are not among them."""
    success: Measured
    """Share of the prompts with the trigger at which the federated model prefers the target."""
    success_without_trigger: Measured
    """The same of the prompts as they are."""
    success_before: Measured
    """The same of the base, with the trigger: what the attack did not have to do."""
    target_loss: Measured
    """Mean loss of the target at prompts with the trigger, of the federated model."""
    right_loss: Measured
    """Mean loss of the right answers there."""
    seconds: Seconds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GateJudged(Event):
    """A round's adapter was let through, or the run went back to the last good one."""

    name_on_disk: ClassVar[str] = "gate_judged"

    round: Count
    passed: bool
    """False: the round is taken back, and the last good adapter stands."""
    reason: str | None
    """Why it was turned away."""
    loss: Measured
    """Held-out loss of the round's adapter by the gate's judge."""
    last_good_loss: Measured
    """That of the adapter it was measured by."""
    last_good_round: Count
    """Round that the adapter is of which it was measured by."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class GroupDropped(Event):
    """Under secure aggregation by groups, one of them gave no sum to a round."""

    name_on_disk: ClassVar[str] = "group_dropped"

    round: Count
    group: str
    clients: tuple[str, ...]
    """Its sites."""
    code: str
    reason: str
