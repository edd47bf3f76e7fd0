"""Whether what a configuration asks for goes together: what its method needs beside what the settings give.

The rules (`fedtune.config.rules`) refuse; this says why in the method's own terms, and what would do
instead. Both read `fedtune.config.methods`, and nothing is ever replaced by something else on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from fedtune.config.aggregation_rules import Finding
from fedtune.config.compose import judged
from fedtune.config.derived import rounds_a_training
from fedtune.config.local_rules import own_model_findings
from fedtune.config.methods import METHODS, method
from fedtune.config.pace_rules import asynchronous_findings
from fedtune.config.schema import Config
from fedtune.errors import ConfigError, Problem

__all__ = ["Alternative", "Requirement", "alternatives", "noise_requirement", "requirements"]


_OWN_MODELS = {
    "ditto": "a global adapter that keeps its coordinates",
    "fine_tuning": "rounds in common, one rank",
    "clusters": "each update in clear, and a mean of deltas",
}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One thing that a method needs, and what there is.

    Attributes:
        about: What it is about, in a word or two.
        needs: What the method needs.
        has: What the settings give.
        met: Whether that is enough.
    """

    about: str
    needs: str
    has: str
    met: bool


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """A built-in method with the other settings as they are.

    Attributes:
        method: Its name.
        config: The configuration with it; None where it cannot even be composed.
        problems: Why it is impossible; empty where it is possible.
    """

    method: str
    config: Config | None
    problems: tuple[Problem, ...]


def requirements(config: Config) -> tuple[Requirement, ...]:
    """Return what the method, the defence and the optimizer need, beside what they get."""
    known, chosen = method(config.aggregation.method), config.aggregation.method
    secure = config.secagg.enabled
    found = [
        Requirement(
            about="updates",
            needs="their sum" if known.summable else known.needs,
            has="their sum, under masks" if secure else "each update, in clear",
            met=known.secure or not secure,
        ),
        Requirement(
            about="ranks",
            needs="one rank at all sites"
            if known.other_rows is None
            else f"any ranks; other rows are {known.other_rows}",
            has=_ranks(config),
            met=not config.aggregation.site_ranks
            or (known.other_rows is not None and (known.other_rows == "kept" or not secure)),
        ),
        Requirement(
            about="adapter",
            needs=f"peft.method={known.peft_method}",
            has=f"peft.method={config.peft.method}",
            met=chosen not in METHODS or config.peft.method == known.peft_method,
        ),
        Requirement(
            about="base weights",
            needs="nothing: what does not fit the adapter stands beside it"
            if known.has_side_car
            else "nothing",
            has=config.model.quantization,
            met=True,
        ),
    ]
    if config.updates.quantization != "none":
        feeds_back = config.updates.error_feedback
        found.append(
            Requirement(
                about="few bits",
                needs="a delta of A or B" + (" in the same coordinates every round" if feeds_back else ""),
                has=f"{known.travels}{', under masks' if secure else ''}",
                met=known.why_not_quantized is None
                and not (feeds_back and known.resets_moments)
                and not secure,
            )
        )
    if config.backend.name == "deployment":
        found.append(
            Requirement(
                about="sites",
                needs="nothing but fedtune" if known.why_not_deployed is None else "a simulation",
                has=f"a deployment{': ' + known.why_not_deployed if known.why_not_deployed else ''}",
                met=known.why_not_deployed is None,
            )
        )
    if config.defence.name != "none":
        found.append(
            Requirement(
                about="defence",
                needs=f"{config.defence.name}: each update, of a method that averages deltas",
                has=f"{'their sum' if secure else 'each update'}, {chosen}",
                met=known.summable and not secure and not config.aggregation.site_ranks,
            )
        )
    if secure and config.secagg.groups > 1:
        found.append(
            Requirement(
                about="robust mean",
                needs=f"{config.secagg.groups} fixed groups of {config.secagg.k_min} sites or more, whole",
                has=f"the median of their means, which stands {(config.secagg.groups - 1) // 2} false groups",
                met=known.secure and not known.sketches,
            )
        )
    if rounds_a_training(config) > 1:
        every, rounds = rounds_a_training(config), config.federation.rounds
        found.append(
            Requirement(
                about="rounds",
                needs=f"{every} for one training: {known.masked.travels if known.masked else known.travels}",
                has=f"{rounds}, so {rounds // every} trainings",
                met=rounds % every == 0,
            )
        )
    if config.gate.judge != "none":
        found.append(
            Requirement(
                about="gate",
                needs="one global model, and held-out rows at "
                + ("the server" if config.gate.judge == "server" else "sites that say their loss"),
                has=f"margin {config.gate.margin:g} nats a token",
                met=not known.kept and rounds_a_training(config) == 1,
            )
        )
    if config.server_optimizer.name != "none":
        found.append(
            Requirement(
                about="server optimizer",
                needs=f"{config.server_optimizer.name}: a mean delta, and sites that follow its steps",
                has=f"{chosen}; sites {'refuse steps longer than a mean' if secure else 'follow'}",
                met=known.summable and not secure,
            )
        )
    if config.personal.name != "none":
        needs = f"{config.personal.name}: {_OWN_MODELS[config.personal.name]}"
        found.append(_unless("own models", needs, config, own_model_findings(config), "personal.name"))
    if config.asynchronous.name != "none":
        needs = f"{config.asynchronous.name}: deltas of the same factors, each in clear"
        found.append(_unless("own pace", needs, config, asynchronous_findings(config), "asynchronous.name"))
    return tuple(found)


def _unless(about: str, needs: str, config: Config, findings: Iterable[Finding], chosen: str) -> Requirement:
    """Return a requirement that is met unless a rule says what keeps ``chosen`` from the rest."""
    against = [key for _, keys, _ in findings for key in keys.split(", ")]
    others = ", ".join(sorted({*against} - {chosen}))
    return Requirement(
        about=about,
        needs=needs,
        has=f"{config.aggregation.method}, {'their sum' if config.secagg.enabled else 'each update'}"
        + (f"; against it: {others}" if others else ""),
        met=not against,
    )


def noise_requirement(config: Config) -> Requirement:
    """Return what differential privacy would need of the method: for planning, as no run adds noise yet.

    A sum of clipped updates has a bounded sensitivity. Noise in both factors is multiplied: (B + b)(A + a)
    holds b a, which grows with the square of the noise, also where the factors are trained in turn (Sun et
    al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024, section 3).
    """
    known = method(config.aggregation.method)
    if not known.secure:
        has = "each update by itself: noise in a sum would not cover it"
    elif known.sums_one_factor:
        has = "one factor: noise enters the products once"
    else:
        has = "both factors, in turn or together: noise is multiplied"
    return Requirement(
        about="noise",
        needs="sums of one factor's clipped updates",
        has=has,
        met=known.sums_one_factor,
    )


def alternatives(overrides: Sequence[str]) -> tuple[Alternative, ...]:
    """Return every built-in method under the same overrides but for ``aggregation``, possible ones first.

    Args:
        overrides: That compose; what they say of ``aggregation.method`` and ``peft.method`` is left out.
    """
    others = [
        text
        for text in overrides
        if text.partition("=")[0].lstrip("+") not in {"aggregation", "aggregation.method", "peft.method"}
    ]
    found = []
    for name in METHODS:
        try:
            config, problems = judged([f"aggregation={name}", *others])
        except ConfigError as error:
            found.append(Alternative(method=name, config=None, problems=error.problems))
            continue
        found.append(Alternative(method=name, config=replace(config, name="explained"), problems=problems))
    return tuple(sorted(found, key=lambda each: bool(each.problems)))


def _ranks(config: Config) -> str:
    ranks = sorted({config.peft.rank, *config.aggregation.site_ranks.values()})
    return f"rank {ranks[0]} everywhere" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
