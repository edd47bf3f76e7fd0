"""What a site does when it is asked: the server asks, the site's own policy decides.

A pure function: what was asked, what was used up and the time come in, and a decision comes out. Each check
stands for itself and an acceptance needs all of them, so that a stricter policy never accepts more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from fedtune.config.validate import shown
from fedtune.errors import FederationError, Problem
from fedtune.site.policy_asked import Asked, Coordinator, PrivacyCost, Usage, local_time
from fedtune.site.policy_schema import INSTALLED, SitePolicy

__all__ = ["REASONS", "Asked", "Coordinator", "Decision", "PrivacyCost", "Usage", "decide"]

REASONS: Final = {
    "coordinator": "the policy names no such coordinator, or with another fingerprint",
    "bundle": "the bundle is not allowed",
    "base_model": "the base model is not allowed",
    "metrics": "a number is asked for that may not leave",
    "hours": "it is not the time",
    "peft.method": "the method of fine-tuning is not allowed",
    "peft.rank": "the rank is too great",
    "data.source": "the source of rows is not allowed",
    "data.files": "a file is not allowed",
    "data.columns": "a column would be read that may not be",
    "rounds": "the day's rounds of training are used up",
    "evaluations": "the day's evaluations are used up",
    "steps": "a round has too many steps",
    "tokens": "a round may train on too many tokens",
    "seconds": "a round may take too long",
    "memory": "training is estimated to take too much memory",
    "secure_aggregation": "updates would be sent in clear",
    "k_min": "a sum may be made of too few sites",
    "max_colluders": "too few colluding sites are assumed",
    "clip_bound": "entries of an update are clipped to too great a bound, or not at all",
    "privacy": "the budget is used up, or the run does not say what it costs",
}
"""Why a request is refused: the codes that a coordinator is told, and what each means."""

_FIX: Final = (
    "nothing, if this is what the site wants; else change {key} in the policy and start the site anew"
)

Refusal = tuple[str, str, str]
"""(reason, key of the policy, what)"""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Whether a request is accepted.

    Attributes:
        reasons: Why not, as keys of `REASONS` in their order; empty for an acceptance. Whoever asks may know.
        problems: One for each reason, with the values that were asked for and the limits. They belong in
            the site's own log and nowhere else.
    """

    reasons: tuple[str, ...]
    problems: tuple[Problem, ...]

    @property
    def accepted(self) -> bool:
        """Whether all checks were passed."""
        return not self.reasons

    def without(self, reasons: Collection[str]) -> Decision:
        """Return the decision as it is when some reasons do not count."""
        kept = [pair for pair in zip(self.reasons, self.problems, strict=True) if pair[0] not in reasons]
        return Decision(reasons=tuple(r for r, _ in kept), problems=tuple(p for _, p in kept))

    def refusal(self) -> FederationError:
        """Return the error that the coordinator may see: FT640 with the reasons, and no value of the policy.

        Raises:
            ValueError: The request was accepted.
        """
        if self.accepted:
            raise ValueError("the request was accepted: there is no refusal")
        return FederationError(
            Problem(
                code="FT640",
                what=f"the site's policy refuses this: {', '.join(self.reasons)}",
                where="the site's policy",
                fix="ask the site's operator, whose own log says more",
            )
        )


def decide(policy: SitePolicy, request: Asked, used: Usage, now: datetime) -> Decision:
    """Decide on a request.

    Guarantees:
        * A request is accepted only if it lies within every limit of the policy, whatever its values are; a
          number that is none (NaN) lies within no limit.
        * A policy that is stricter in any key accepts no request that this one refuses.

    Args:
        policy: The site's own.
        request: What is asked for.
        used: What was accepted before this request.
        now: The time, with its zone.

    Raises:
        ValueError: The time has no zone.
    """
    found = [
        *_who_and_what(policy, request),
        *_when(policy, now),
        *_training(policy, request),
        *_rows(policy, request),
        *_work(policy, request, used),
        *_sums(policy, request),
        *_privacy(policy, request, used),
    ]
    at = f"run {shown(request.run, quoted=False)}, round {request.round}"
    problems = [
        Problem(code="FT640", what=what, where=f"{key} of the site's policy; {at}", fix=_FIX.format(key=key))
        for _, key, what in found
    ]
    return Decision(reasons=tuple(reason for reason, _, _ in found), problems=tuple(problems))


def _who_and_what(policy: SitePolicy, request: Asked) -> Iterator[Refusal]:
    who = request.coordinator
    pinned = policy.coordinators.get(who.name)
    if pinned is None:
        yield "coordinator", "coordinators", f"the policy knows no coordinator {shown(who.name)}"
    elif pinned != who.fingerprint:
        what = f"{shown(who.name)} has the fingerprint {shown(who.fingerprint)}, the policy says {pinned}"
        yield "coordinator", "coordinators", what
    own = request.bundle_installed and INSTALLED in policy.bundles
    if not (own or request.bundle in set(policy.bundles) - {INSTALLED}):
        yield "bundle", "bundles", f"the bundle is {shown(request.bundle)}, which the policy does not name"
    if request.base_model not in policy.base_models:
        what = f"the base model is {shown(request.base_model)}, which the policy does not name"
        yield "base_model", "base_models", what
    yield from _unlisted("metrics", "metrics", "may not leave", request.metrics, policy.metrics)


def _when(policy: SitePolicy, now: datetime) -> Iterator[Refusal]:
    local, hours = local_time(policy, now), policy.hours
    if hours is None:
        return
    clock = f"{local:%H:%M}"
    if hours.start < hours.end:
        open_now = hours.start <= clock < hours.end
    else:
        open_now = clock >= hours.start or clock < hours.end
    if not open_now:
        what = f"it is {clock}, requests are accepted from {hours.start} to {hours.end} ({policy.timezone})"
        yield "hours", "hours", what


def _training(policy: SitePolicy, request: Asked) -> Iterator[Refusal]:
    peft = policy.peft
    yield from _unlisted("peft.method", "peft.methods", "is not allowed", (request.method,), peft.methods)
    yield from _above("peft.rank", "peft.max_rank", request.rank, peft.max_rank)


def _rows(policy: SitePolicy, request: Asked) -> Iterator[Refusal]:
    data = policy.data
    yield from _unlisted("data.source", "data.sources", "is not allowed", (request.source,), data.sources)
    yield from _unlisted("data.files", "data.files", "may not be read", request.files, data.files)
    if data.columns is not None:
        columns = sorted(request.columns)
        yield from _unlisted("data.columns", "data.columns", "may not be read", columns, data.columns)


def _work(policy: SitePolicy, request: Asked, used: Usage) -> Iterator[Refusal]:
    limits = policy.limits
    if request.kind == "evaluate":
        today = ("evaluations", "evaluations_per_day", used.evaluations_today + 1, limits.evaluations_per_day)
    else:
        today = ("rounds", "rounds_per_day", used.rounds_today + 1, limits.rounds_per_day)
    asked: tuple[tuple[str, str, float, float | None], ...] = (
        today,
        ("steps", "steps_per_round", request.steps, limits.steps_per_round),
        ("tokens", "tokens_per_round", request.tokens, limits.tokens_per_round),
        ("seconds", "seconds_per_round", request.seconds, limits.seconds_per_round),
        ("memory", "memory_mib", request.memory_mib, limits.memory_mib),
    )
    for reason, key, value, limit in asked:
        yield from _above(reason, f"limits.{key}", value, limit)


def _sums(policy: SitePolicy, request: Asked) -> Iterator[Refusal]:
    rules, section = policy.secure_aggregation, "secure_aggregation"
    if request.secure:
        for key, value, limit in (
            ("k_min", request.k_min, rules.k_min),
            ("max_colluders", request.max_colluders, rules.max_colluders),
        ):
            if value < limit:
                yield key, f"{section}.{key}", f"{key} is {value}, the policy demands at least {limit}"
    elif rules.required:
        yield section, f"{section}.required", "updates would be sent without secure aggregation"
    key = f"{section}.max_clip_bound"
    if request.clip_bound is not None:
        yield from _above("clip_bound", key, request.clip_bound, rules.max_clip_bound)
    elif rules.max_clip_bound is not None:
        yield "clip_bound", key, "nothing would be clipped: the run has no secure aggregation"


def _privacy(policy: SitePolicy, request: Asked, used: Usage) -> Iterator[Refusal]:
    budget, cost, spent = policy.privacy, request.privacy, used.privacy
    if budget is None:
        return
    if cost is None:
        yield "privacy", "privacy", "the policy has a budget, and the run does not say what it costs"
        return
    pairs = ((cost.epsilon, spent.epsilon, budget.epsilon), (cost.delta, spent.delta, budget.delta))
    if not all(new >= 0 and old >= 0 and old + new <= most for new, old, most in pairs):
        what = (
            f"the run costs epsilon {cost.epsilon:g} and delta {cost.delta:g}, of {budget.epsilon:g} and "
            f"{budget.delta:g} are {spent.epsilon:g} and {spent.delta:g} used up"
        )
        yield "privacy", "privacy", what


def _unlisted(
    reason: str, key: str, why: str, asked: Iterable[str], allowed: Iterable[str]
) -> Iterator[Refusal]:
    """Refuse values that no list names."""
    known = set(allowed)
    if others := [value for value in asked if value not in known]:
        yield reason, key, f"{', '.join(shown(value) for value in others[:5])} {why}"


def _above(reason: str, key: str, asked: float, most: float | None) -> Iterator[Refusal]:
    """Refuse a number above a limit, and one that is no number."""
    if most is not None and not asked <= most:
        yield reason, key, f"{asked:,} is asked for, {key} is {most:,}"
