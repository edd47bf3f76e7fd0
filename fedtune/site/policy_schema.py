"""A site's own policy: what every key of ``site.yaml`` means, and the values it takes.

Every key has to be given: what a site allows is written down where its people sign it, and nothing follows
from a default. ``null`` stands for no limit where a key takes it.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal
from zoneinfo import ZoneInfo, available_timezones

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.dataclasses import dataclass

from fedtune.config.keys import similar
from fedtune.config.schema import Metric
from fedtune.secagg.policy import K_MIN_FLOOR

__all__ = [
    "ANY",
    "INSTALLED",
    "DataLimits",
    "Hours",
    "PeftLimits",
    "PrivacyBudget",
    "SecureAggregation",
    "SitePolicy",
    "WorkLimits",
]

ANY: Final = "any"
"""In ``preapproved``: every run that keeps to the policy."""

INSTALLED: Final = "installed"
"""In ``bundles``: the bundle that the installed wheel itself builds."""

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        meant = similar(name, sorted(available_timezones()))
        raise ValueError(
            f"did you mean {meant}?" if meant else "name a zone of the IANA database, such as Europe/Berlin"
        ) from None
    return name


def _in_words(words: str) -> JsonDict:
    return {"words": words}


Name = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Sha256 = Annotated[
    str, Field(pattern="^[0-9a-f]{64}$", json_schema_extra=_in_words("a SHA-256 in lower-case hex"))
]
Bundle = Annotated[
    str,
    Field(
        pattern=f"^({INSTALLED}|[0-9a-f]{{64}})$",
        json_schema_extra=_in_words(f"{INSTALLED} or a SHA-256 in lower-case hex"),
    ),
]
Preapproval = Annotated[
    str,
    Field(
        pattern=f"^({ANY}|[0-9a-f]{{64}})$",
        json_schema_extra=_in_words(f"{ANY} or a SHA-256 in lower-case hex"),
    ),
]
Fingerprint = Annotated[str, Field(pattern="^[a-z2-7]{4}(-[a-z2-7]{4}){7}$")]
Coordinators = Annotated[
    dict[Name, Fingerprint],
    Field(json_schema_extra=_in_words("a mapping of names to fingerprints, eight groups of four marks each")),
]
Clock = Annotated[
    str,
    Field(
        pattern="^([01][0-9]|2[0-3]):[0-5][0-9]$",
        json_schema_extra=_in_words("a time from 00:00 to 23:59"),
    ),
]
Zone = Annotated[
    str,
    AfterValidator(_known_zone),
    Field(json_schema_extra=_in_words("a zone of the IANA database, such as Europe/Berlin")),
]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Hours:
    start: Clock
    """From when on a request is accepted, by the clock on the wall in ``timezone``."""

    end: Clock
    """Until when, this minute no more; an end before the start lies on the next day. What began before it
    may take ``limits.seconds_per_round`` longer."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PeftLimits:
    methods: tuple[Literal["lora", "core"], ...]
    """Methods of fine-tuning."""

    max_rank: Count
    """Greatest rank of an adapter: what leaves grows with it."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DataLimits:
    sources: tuple[Name, ...]
    """Values of ``data.source``: ``site`` for the rows of ``files``, as every deployment asks for them;
    ``files``, ``hpo``, or the name of an installed plugin, where a configuration names rows itself."""

    files: tuple[Name, ...]
    """This site's rows: files with absolute paths."""

    columns: tuple[Name, ...] | None
    """Columns of files that may be read, the row's id and ``partition.column`` included; null for all. With
    ``data.format=auto`` a configuration reads the columns of every format."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class WorkLimits:
    rounds_per_day: Count | None
    """Requests to train in a day from midnight to midnight in ``timezone``; a repeated one counts again."""

    evaluations_per_day: Count | None
    """Requests to evaluate in a day: a held-out loss tells a little about the rows each time."""

    steps_per_round: Count | None
    """Optimizer steps of a round, those of the site's own model (``personal``) included."""

    tokens_per_round: Count | None
    """Most tokens that a round can train on: steps x examples in a step x ``data.max_tokens``."""

    seconds_per_round: Amount | None
    """Greatest ``federation.round_timeout_seconds``."""

    memory_mib: Amount | None
    """Memory of training, as ``fedtune estimate`` gives it for the configuration on this machine."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SecureAggregation:
    required: bool
    """Refuse to send an update that the coordinator could look at by itself."""

    k_min: Annotated[int, Field(ge=K_MIN_FLOOR)]
    """Smallest cohort: a secure sum may not be planned for fewer sites."""

    max_colluders: Count
    """Sites that may work together with a server that lies, as a secure sum has to assume at least."""

    max_clip_bound: PositiveFloat | None
    """Greatest bound to which entries of an update are clipped, as the configuration states it or as it
    follows from it. Nothing is clipped without secure aggregation, so a number refuses runs without it."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PrivacyBudget:
    epsilon: PositiveFloat
    """All that this site's rows may ever cost, the costs of rounds added up."""

    delta: Annotated[float, Field(gt=0, lt=1)]
    """Likewise."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SitePolicy:
    """What a site allows, whatever a coordinator asks."""

    version: Literal[1]
    """Version of this file's format."""

    timezone: Zone
    """Where the site's days and hours are."""

    coordinators: Coordinators
    """Who may ask: a coordinator's name, and the fingerprint that its operator read out over another
    channel."""

    bundles: tuple[Bundle, ...]
    """Bundles of coordinators' code, which never runs here; ``installed`` is the one that the installed
    version of fedtune makes itself."""

    preapproved: tuple[Preapproval, ...]
    """Runs that may begin without ``fedtune client approve``: those of a configuration with this hash, or
    ``any`` that keeps to this policy. Every other one waits for the operator, and waits again when its
    configuration, its base model or its bundle changes."""

    base_models: tuple[Sha256, ...]
    """Base models that may be trained, by their hash: equal on every machine and for every quantization."""

    metrics: tuple[Metric, ...]
    """Numbers that may leave beside an update."""

    hours: Hours | None
    """When requests are accepted; null for always."""

    peft: PeftLimits
    """What is trained."""

    data: DataLimits
    """Which rows it is trained on."""

    limits: WorkLimits
    """How much work that may be."""

    secure_aggregation: SecureAggregation
    """How updates are hidden from the coordinator."""

    privacy: PrivacyBudget | None
    """Differential privacy that has to be kept; null if none is required. A budget refuses a run that does
    not say what it costs."""
