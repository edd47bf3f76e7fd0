"""The types of a run's events; docs/reference/rounds.md lists every event and field for a reader.

Guarantee: a measured number that is not finite (a diverged loss) becomes ``None`` on construction, so that
memory and disk agree. A time, a count or a weight that is not finite is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic.dataclasses import dataclass

from fedtune.observability.cluster_events import Clustered
from fedtune.observability.event_base import STRICT, Count, Event, Measured, Positive, Seconds
from fedtune.observability.preflight_events import DryRound, Preflight
from fedtune.observability.robustness_events import BackdoorMeasured, GateJudged, GroupDropped

__all__ = [
    "EVENT_TYPES",
    "BackdoorMeasured",
    "BaselineFinished",
    "ClientEvaluated",
    "ClientFailed",
    "ClientFineTuned",
    "ClientTrained",
    "Clustered",
    "DryRound",
    "Event",
    "GateJudged",
    "Generated",
    "GroupDropped",
    "ModelLoaded",
    "Preflight",
    "QuorumMissed",
    "RoundAggregated",
    "RoundFinished",
    "RoundStarted",
    "RunFinished",
    "RunStarted",
    "SecurePromise",
    "SecureSum",
    "SiteSize",
    "Sites",
    "Split",
    "StepProgress",
]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunStarted(Event):
    """A session begins: the first of a run, or one that resumes it."""

    name_on_disk: ClassVar[str] = "run_started"

    name: str
    config: dict[str, Any]
    """The resolved configuration, as JSON."""
    version: str
    """fedtune's version."""
    machine: dict[str, Any]
    """Facts of the machine, as JSON."""
    resumed_after: Count | None = None
    """Last complete round that is kept; null for a run that starts from nothing. See effective_events."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelLoaded(Event):
    name_on_disk: ClassVar[str] = "model_loaded"

    seconds: Seconds
    name: str
    hash: str
    parameters: Count
    adapter_parameters: Count
    quantization: str
    compute_dtype: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SiteSize:
    """One site's rows, after skipping the bad ones; null where the site does not say how many."""

    name: str
    train_examples: Count | None
    held_out_examples: Count | None
    version: str | None = None
    """Of fedtune at the site; null in logs that were written before it was asked for."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Split:
    """How labels fall on sites: ``counts[i][j]`` rows of ``labels[j]`` at ``sites[i]``, held-out ones too.

    It names its sites itself, since a server lists sites in an order of its own and may lack one.
    """

    sites: tuple[str, ...]
    labels: tuple[str, ...]
    counts: tuple[tuple[Count, ...], ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Sites(Event):
    name_on_disk: ClassVar[str] = "sites"

    sites: tuple[SiteSize, ...]
    skipped_rows: Count
    """Bad rows left out under ``data.on_bad_row=skip``."""
    split: Split | None = None
    """Null where rows carry no label."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoundStarted(Event):
    name_on_disk: ClassVar[str] = "round_started"

    round: Count
    clients: tuple[str, ...]
    factors: tuple[Literal["A", "B"], ...]
    """Adapter factors that are trained and travel in this round."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class QuorumMissed(Event):
    """A round had fewer usable replies than its contract demands, and is asked for again."""

    name_on_disk: ClassVar[str] = "quorum_missed"

    round: Count
    attempt: Count
    """Which of the round's attempts this was, from 1."""
    attempts: Count
    """How many there may be."""
    reason: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientTrained(Event):
    """A client's delta arrived and counts, or waits for the secure sum. What a site does not say is null."""

    name_on_disk: ClassVar[str] = "client_trained"

    round: Count
    client: str
    weight: Positive
    """Unnormalised weight of its delta."""
    examples: Count | None
    tokens: Count | None
    """Tokens computed, prompt and response."""
    steps: Count
    loss_before: Measured
    """Nats per response token on the first step's rows, before training."""
    loss_after: Measured
    started: Seconds
    """Unix seconds at which local training began."""
    finished: Seconds
    peak_memory_mib: Positive | None
    uplink_bytes: Count
    """Under secure aggregation the rest follows in ``secure_sum``."""
    downlink_bytes: Count
    delta_norm: Measured
    """L2 norm over all tensors of the delta; null under secure aggregation."""
    training: Count | None = None
    """Which of this client's trainings it was, from 1; null in rounds, of which each has one."""
    staleness: Count | None = None
    """Steps of the server between the adapter that it began with and its arrival; null in rounds."""
    virtual_seconds: Seconds | None = None
    """Virtual time at which it arrived; null in rounds and in a deployment."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientFailed(Event):
    name_on_disk: ClassVar[str] = "client_failed"

    round: Count
    client: str
    stage: Literal["hello", "train", "secagg", "evaluate", "preflight"]
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SecurePromise(Event):
    """What secure aggregation holds and does not hold for this federation, said before the first round."""

    name_on_disk: ClassVar[str] = "secure_promise"

    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SecureSum(Event):
    """Secure aggregation of a round has ended: the sum was opened, or the round is burnt."""

    name_on_disk: ClassVar[str] = "secure_sum"

    round: Count
    opened: bool
    """False: the round is burnt. Its updates may have been opened, so they are spent, and the run goes on
    from the adapter before it. So it does where a round was to fit to what the one before trained, and nobody
    could."""
    reason: str | None
    """Why it is burnt."""
    clients: tuple[str, ...]
    """Whose updates are in the sum."""
    attempts: Count
    seconds: Seconds
    """Of all trips but the first, which travels with training."""
    uplink_bytes: Count
    """Sent by all clients in these trips."""
    downlink_bytes: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoundAggregated(Event):
    name_on_disk: ClassVar[str] = "round_aggregated"

    round: Count
    clients: tuple[str, ...]
    weights: tuple[Positive, ...]
    """Normalised, in the order of ``clients``."""
    aggregation_error: Measured
    """Relative Frobenius distance of the aggregate from the mean of the products; null if not measured."""
    exact: bool
    seconds: Seconds
    delta_norm: Measured


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientEvaluated(Event):
    name_on_disk: ClassVar[str] = "client_evaluated"

    round: Count
    """0 is the base: the seeded start, before any training."""
    client: str
    loss: Measured
    """Mean nats per response token on the site's held-out rows."""
    personal_loss: Measured = None
    """The same of the model that is the site's own; null where it has none, or does not say."""
    tokens: Count | None
    examples: Count | None
    started: Seconds
    finished: Seconds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ClientFineTuned(Event):
    """After the last round a site took steps of its own; what they gave stays there."""

    name_on_disk: ClassVar[str] = "client_fine_tuned"

    round: Count
    """The last one."""
    client: str
    tokens: Count | None
    steps: Count
    loss_before: Measured
    """As of ``client_trained``."""
    loss_after: Measured
    started: Seconds
    finished: Seconds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RoundFinished(Event):
    name_on_disk: ClassVar[str] = "round_finished"

    round: Count
    held_out_loss: Measured
    """Unweighted mean over sites; null where this round was not evaluated."""
    virtual_seconds: Seconds | None = None
    """Virtual time at which it was aggregated; null without a virtual clock."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BaselineFinished(Event):
    name_on_disk: ClassVar[str] = "baseline_finished"

    kind: Literal["local", "centralized"]
    site: str | None
    """The site that trained alone; null for the centralized one."""
    held_out_loss: dict[str, Measured]
    """Site to loss: all sites for the centralized one, at least its own for a local one."""
    steps: Count
    seconds: Seconds


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Generated(Event):
    """One held-out prompt, answered by the base and by the federated model."""

    name_on_disk: ClassVar[str] = "generated"

    site: str
    prompt: str
    reference: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, config=STRICT)
class RunFinished(Event):
    name_on_disk: ClassVar[str] = "run_finished"

    status: Literal["completed", "failed", "interrupted"]
    reason: str | None
    seconds: Seconds
    """The federation in this session: from the start of loading to the last evaluation."""
    load_seconds: Seconds
    peak_memory_mib: Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StepProgress(Event):
    """One optimizer step of a client; shown while it runs and never written to disk."""

    name_on_disk: ClassVar[str] = "step"
    stored: ClassVar[bool] = False

    round: Count
    client: str
    step: Count
    """Steps done in this round, from 1."""
    steps: Count
    loss: Measured
    tokens_per_second: Measured


EVENT_TYPES: Mapping[str, type[Event]] = {
    kind.name_on_disk: kind
    for kind in (
        RunStarted,
        ModelLoaded,
        Sites,
        RoundStarted,
        QuorumMissed,
        ClientTrained,
        ClientFailed,
        SecurePromise,
        GroupDropped,
        SecureSum,
        RoundAggregated,
        Clustered,
        GateJudged,
        ClientEvaluated,
        ClientFineTuned,
        RoundFinished,
        BaselineFinished,
        Generated,
        BackdoorMeasured,
        Preflight,
        DryRound,
        RunFinished,
    )
}
"""Stored events by their name on disk."""
