"""What ``fedtune server preflight`` writes down: every site's answer, and how a dry round went."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedtune.observability.event_base import STRICT, Count, Event, Seconds

__all__ = ["DryRound", "DrySite", "Preflight", "SiteCheckResult", "SiteReadiness"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SiteCheckResult:
    """How one of a site's own checks ended."""

    name: str
    status: Literal["ok", "warning", "failed"]
    code: str | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SiteReadiness:
    """What one enrolled site answered; all but the first four are null or empty where it did not."""

    name: str
    connected: bool
    code: str | None
    """Why there is no answer: of a refusal or a failure; null if there is one."""
    reason: str | None
    version: str | None = None
    """Of fedtune."""
    flwr: str | None = None
    python: str | None = None
    torch: str | None = None
    train_refused: tuple[str, ...] = ()
    """Why its policy would refuse to train."""
    evaluate_refused: tuple[str, ...] = ()
    approval: Literal["approved", "waits"] | None = None
    checks: tuple[SiteCheckResult, ...] = ()
    checks_age_seconds: Seconds | None = None
    days_left: int | None = None
    """Until the first of its certificates ends."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Preflight(Event):
    """Every enrolled site was asked whether it is ready for a run."""

    name_on_disk: ClassVar[str] = "preflight"

    run: str
    """Name of the run that was asked about."""
    version: str
    """Of the coordinator's fedtune."""
    flwr: str
    python: str
    torch: str
    seconds: Seconds
    """From the first question to the last answer."""
    sites: tuple[SiteReadiness, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DrySite:
    """One site's part in a dry round."""

    name: str
    stage: Literal["hello", "train", "secagg", "evaluate"] | None
    """Where it failed; null if it did not."""
    code: str | None
    reason: str | None
    seconds: Seconds | None
    """Of its training; null if it did not train."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DryRound(Event):
    """A round of one step was tried with the sites that had answered, and its result thrown away."""

    name_on_disk: ClassVar[str] = "dry_round"

    finished: bool
    code: str | None
    """Why it did not finish."""
    reason: str | None
    seconds: Seconds
    """With loading of base models and evaluation."""
    uplink_bytes: Count
    """Sent by all sites, with what secure aggregation takes."""
    downlink_bytes: Count
    sites: tuple[DrySite, ...]
    """Who was asked to take part."""
