"""Did federation help? The answer in plain words, from a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fedtune.observability import wording

__all__ = ["Verdict", "verdict"]


_NAMED_WITH_LOSSES = 6
"""More sites than this are named without their losses, which the table has."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An answer.

    Attributes:
        headline: One short sentence.
        sentences: What it rests on, the sites it does not hold for by name, and what was not measured.
        tone: ``good`` at every site, ``mixed`` at some, ``bad`` at none, ``open`` where nothing was measured.
    """

    headline: str
    sentences: tuple[str, ...]
    tone: Literal["good", "mixed", "bad", "open"]


def verdict(summary: Mapping[str, Any]) -> Verdict:
    """Judge a run by its summary.

    With local baselines the question is whether the federated model is better, at each site, than the one
    that site trained alone with the same number of steps; without them, only whether it is better than the
    base. "Better" is a lower held-out loss; equal is not better.
    """
    sites: Mapping[str, Mapping[str, Any]] = summary["sites"]
    means = summary["held_out_loss"]
    judged = {name: site for name, site in sites.items() if site["better_than_local"] is not None}
    against = "local" if judged else "base"
    if not judged:
        judged = {
            name: site
            for name, site in sites.items()
            if site["federated"] is not None and site["base"] is not None
        }
    missing = [name for name in sites if name not in judged]
    if not judged:
        return Verdict(headline="There is no result yet.", sentences=_nothing(summary, missing), tone="open")
    worse = [name for name, site in judged.items() if not site["federated"] < site[against]]
    sentences = [_means(means), _ratio(summary)]
    sentences += [_named_losses(worse, judged, against)]
    if missing:
        sentences.append(f"There is no comparison for {wording.listing(missing)}.")
    if against == "base":
        sentences.append(
            "Whether a site would have done as well alone was not measured; the local baseline measures it."
        )
    return Verdict(
        headline=_headline(len(judged), len(worse), against, unjudged=len(missing)),
        sentences=tuple(sentence for sentence in sentences if sentence),
        tone="good" if not worse else "bad" if len(worse) == len(judged) else "mixed",
    )


def _headline(judged: int, worse: int, against: str, *, unjudged: int) -> str:
    helped = judged - worse
    which = "every site" if not worse else "no site" if not helped else f"{helped} of {judged} sites"
    if judged == 1:
        which = "the one site" if helped else "no site"
    elif unjudged > judged:  # a sample was evaluated: it speaks for itself
        which = f"{helped or 'none'} of the {judged} sites that were evaluated"
    if against == "local":
        return f"Federating helped {which}."
    return f"The federated model beats the base at {which}."


def _means(means: Mapping[str, float | None]) -> str:
    if means["base"] is None or means["federated"] is None:
        return "The mean loss cannot be given: at some site the loss is not a number."
    change = "fell" if means["federated"] < means["base"] else "went"
    text = (
        f"On held-out data, the mean loss over sites {change} from {wording.loss(means['base'])} for the "
        f"base to {wording.loss(means['federated'])} for the federated model, in nats per token"
    )
    others = []
    if means["local"] is not None:
        others.append(f"models that each site trained alone reach {wording.loss(means['local'])}")
    if means["centralized"] is not None:
        others.append(
            f"one model trained on all data in one place reaches {wording.loss(means['centralized'])}"
        )
    return f"{text}; {', '.join(others)}." if others else f"{text}."


def _ratio(summary: Mapping[str, Any]) -> str:
    ratio = summary["federated_gain_over_centralized_gain"]
    if (
        ratio is None
        or ratio <= 0
        or summary["held_out_loss"]["centralized"] >= summary["held_out_loss"]["base"]
    ):
        return ""
    return f"Federating reaches {wording.percent(ratio)} of what pooling the data would have gained."


def _named_losses(worse: list[str], sites: Mapping[str, Mapping[str, Any]], against: str) -> str:
    if not worse:
        return ""
    other = "alone" if against == "local" else "base"
    if len(worse) > _NAMED_WITH_LOSSES:
        return f"It did not help {wording.listing(worse)}."
    each = [
        f"{name} ({wording.loss(sites[name]['federated'])} federated, "
        f"{wording.loss(sites[name][against])} {other})"
        for name in worse
    ]
    return f"It did not help {wording.listing(each)}."


def _nothing(summary: Mapping[str, Any], missing: list[str]) -> tuple[str, ...]:
    base = summary["held_out_loss"]["base"]
    if summary["last_evaluated_round"] is not None and missing:
        return (f"The loss of the federated model is not known at {wording.listing(missing)}.",)
    if base is not None:
        return (
            f"The base model's held-out loss is {wording.loss(base)} nats per token, the mean over sites.",
        )
    return ("No held-out evaluation has finished.",)
