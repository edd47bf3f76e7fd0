"""What a coordinator asks for, and what a site has used up: all that a policy looks at."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Literal
from zoneinfo import ZoneInfo

from fedtune.config.derived import clip_bound, most_steps
from fedtune.config.schema import Config
from fedtune.data.rows import columns_read
from fedtune.site.policy_schema import SitePolicy

__all__ = ["Asked", "Coordinator", "PrivacyCost", "Usage", "local_time"]


@dataclass(frozen=True, kw_only=True)
class Coordinator:
    """Who asks, as the connection proves it and not as a message says it.

    Attributes:
        name: As in the policy's ``coordinators``.
        fingerprint: Likewise.
    """

    name: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class PrivacyCost:
    """Differential privacy that is used up; costs add up (Dwork and Roth 2014, theorem 3.16)."""

    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request in the terms of a policy; `of` draws it from a configuration and a message.

    Attributes:
        kind: What the message asks to do; ``hello`` asks whether the rest would be accepted.
        coordinator: Who asks.
        run: Name of the run.
        round: Its round; 0 before the first.
        bundle: SHA-256 of the bundle that came with the message, in hex.
        bundle_installed: Whether the installed wheel makes the very same.
        base_model: Hash of the base model, in hex.
        method: Method of fine-tuning.
        rank: Of the adapter.
        source: Of the rows.
        files: That rows are read from.
        columns: Of these files that are read.
        steps: Optimizer steps of a round, those of the site's own model included.
        tokens: Most that a round trains on.
        seconds: That a round may take.
        memory_mib: Estimate of training.
        metrics: Numbers that are to leave.
        secure: Whether updates are summed under masks.
        k_min: Smallest cohort of a secure sum.
        max_colluders: That a secure sum assumes.
        clip_bound: Of an update's entries; None where nothing is clipped.
        privacy: What the round costs, an upper bound; None where nothing bounds it.
    """

    kind: Literal["hello", "train", "evaluate"]
    coordinator: Coordinator
    run: str
    round: int
    bundle: str
    bundle_installed: bool
    base_model: str
    method: str
    rank: int
    source: str
    files: tuple[str, ...]
    columns: frozenset[str]
    steps: int
    tokens: int
    seconds: float
    memory_mib: float
    metrics: tuple[str, ...]
    secure: bool
    k_min: int
    max_colluders: int
    clip_bound: float | None
    privacy: PrivacyCost | None

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        kind: Literal["hello", "train", "evaluate"],
        coordinator: Coordinator,
        round_number: int,
        bundle: str,
        bundle_installed: bool,
        base_model: str,
        memory_mib: float,
        privacy: PrivacyCost | None = None,
    ) -> Asked:
        """Draw a request from the coordinator's configuration, and from what this site knows otherwise.

        Args:
            config: The coordinator's.
            kind: As the attribute.
            coordinator: Likewise.
            round_number: As ``round``.
            bundle: As the attribute.
            bundle_installed: Likewise.
            base_model: What `fedtune.models.base.base_hash` gives at this site.
            memory_mib: What `fedtune.models.estimate.estimate` gives at this site.
            privacy: As the attribute.
        """
        training, data, secagg = config.training, config.data, config.secagg
        partition = config.partition.column
        return cls(
            kind=kind,
            coordinator=coordinator,
            run=config.name,
            round=round_number,
            bundle=bundle,
            bundle_installed=bundle_installed,
            base_model=base_model,
            method=config.peft.method,
            rank=config.peft.rank,
            source=data.source,
            files=data.files,
            columns=columns_read(data.format, data.columns) | ({partition} if partition else set())
            if data.source in ("files", "site")
            else frozenset(),
            steps=most_steps(config),
            tokens=most_steps(config) * training.examples_per_step * data.max_tokens,
            seconds=config.federation.round_timeout_seconds,
            memory_mib=memory_mib,
            metrics=config.federation.metrics,
            secure=secagg.enabled,
            k_min=secagg.k_min,
            max_colluders=secagg.max_colluders,
            clip_bound=clip_bound(config) if secagg.enabled else None,
            privacy=privacy,
        )


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What was accepted before.

    Attributes:
        rounds_today: Requests to train since midnight.
        evaluations_today: Requests to evaluate since midnight.
        privacy: All that was ever used up.
    """

    rounds_today: int = 0
    evaluations_today: int = 0
    privacy: PrivacyCost = PrivacyCost(epsilon=0.0, delta=0.0)

    @classmethod
    def counted(
        cls,
        policy: SitePolicy,
        now: datetime,
        *,
        trained: Iterable[datetime],
        evaluated: Iterable[datetime],
        privacy: PrivacyCost,
    ) -> Usage:
        """Count what was accepted on the site's present day, and on later ones if its clock was set back.

        Args:
            policy: Says in which zone a day begins.
            now: The time, with its zone.
            trained: When requests to train were accepted, with zones.
            evaluated: When requests to evaluate were.
            privacy: As the attribute.

        Raises:
            ValueError: A time has no zone.
        """
        today = local_time(policy, now).date()

        def since(times: Iterable[datetime]) -> int:
            return sum(local_time(policy, time).date() >= today for time in times)

        return cls(rounds_today=since(trained), evaluations_today=since(evaluated), privacy=privacy)


def local_time(policy: SitePolicy, time: datetime) -> datetime:
    """Return a time by the clock on the site's wall.

    Raises:
        ValueError: It has no zone.
    """
    if time.tzinfo is None:
        raise ValueError(f"a time needs its zone, got {time}")
    return time.astimezone(ZoneInfo(policy.timezone))
