"""What a preflight's answers mean: what has to be done before the run, and who does it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fedtune.keys.certificates import WARN_DAYS
from fedtune.observability import wording
from fedtune.observability.events import DryRound, DrySite, Preflight, SiteCheckResult, SiteReadiness
from fedtune.site.policy import REASONS

__all__ = ["Advice", "Readiness", "readiness", "skewed"]

COMPARED: Final[Mapping[str, str]] = {
    "version": "fedtune",
    "flwr": "flwr",
    "python": "Python",
    "torch": "torch",
}
"""Field of a site's answer that is compared with the coordinator's -> what it is the version of."""

_UNANSWERED: Final[Mapping[str, str]] = {
    "FT601": "its IT lead installs the coordinator's version of fedtune",
    "FT605": "Flower could not deliver the question: its operator looks into the log of "
    "`fedtune client start`",
    "FT606": "ask again, with a longer federation.join_timeout_seconds if its rows or its model are large; "
    "if it stays silent, its operator looks into the log of `fedtune client start`",
    "FT612": "its operator runs `fedtune client start FOLDER`, and `fedtune client doctor FOLDER` if that "
    "does not connect",
    "FT620": "its IT lead installs the coordinator's version of fedtune, or its operator names this bundle "
    "under bundles in site.yaml",
    "FT640": "its operator names this coordinator, with the fingerprint that it reads out, under "
    "coordinators in site.yaml",
    "FT641": "its operator runs `fedtune client resume FOLDER`, if it is to take part",
    "FT645": "its fedtune is older than preflights: its IT lead installs the coordinator's version",
}
"""Code of a site that gave no answer -> what to do."""

_DRY: Final[Mapping[str, str]] = {
    "FT642": "its operator approved nothing in time: `fedtune client approve FOLDER` lists the dry round "
    "while it waits; start the preflight again, with a longer federation.join_timeout_seconds",
    "FT640": "as for the run: change the configuration, or its operator changes site.yaml",
    "FT606": "it was too slow or is stuck: its operator looks into its log; a longer "
    "federation.round_timeout_seconds gives it more time",
    "FT904": "it said nothing during secure aggregation: ask its operator for the end of its log",
}
_ITS_LOG: Final = "its operator looks into its own log, which says more"


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to know before the run.

    Attributes:
        site: Whose it is; None for the federation as a whole.
        blocks: Whether the site is not ready because of it.
        text: What is so, and what who does about it.
    """

    site: str | None
    blocks: bool
    text: str


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """What a preflight found.

    Attributes:
        ready: Whether nothing stands in the way of the run.
        blocked: Names of the sites that are not ready.
        advice: By site, in the order of the table.
    """

    ready: bool
    blocked: tuple[str, ...]
    advice: tuple[Advice, ...]


def readiness(asked: Preflight, tried: DryRound | None) -> Readiness:
    """Say what stands in the way of a run.

    Args:
        asked: Every site's answer.
        tried: How the dry round went; None if there was none to be.
    """
    dry = {site.name: site for site in tried.sites} if tried is not None else {}
    advice = [each for site in asked.sites for each in _of_site(site, asked, dry.get(site.name))]
    if not asked.sites:
        advice.append(Advice(site=None, blocks=True, text="no site is enrolled: fedtune server enrol"))
    if tried is not None and not tried.finished:
        what = f"there was no dry round ({tried.code}: {tried.reason})"
        text = f"{what}; mend what is said of the sites, then start the preflight again"
        advice.append(Advice(site=None, blocks=True, text=text))
    blocked = dict.fromkeys(each.site for each in advice if each.blocks and each.site is not None)
    return Readiness(
        ready=not any(each.blocks for each in advice), blocked=tuple(blocked), advice=tuple(advice)
    )


def skewed(site: SiteReadiness, asked: Preflight) -> tuple[str, ...]:
    """Return which versions differ from the coordinator's, as fields of the answer."""
    return tuple(field for field in COMPARED if getattr(site, field) not in (None, getattr(asked, field)))


def _of_site(site: SiteReadiness, asked: Preflight, dry: DrySite | None) -> Iterator[Advice]:
    def blocks(text: str) -> Advice:
        return Advice(site=site.name, blocks=True, text=text)

    def note(text: str) -> Advice:
        return Advice(site=site.name, blocks=False, text=text)

    if site.code is not None:
        do = _UNANSWERED.get(site.code, _ITS_LOG)
        yield blocks(f"no answer ({site.code}: {site.reason}); {do}")
        return
    for field in skewed(site, asked):
        what = f"{COMPARED[field]} is {getattr(site, field)} there and {getattr(asked, field)} here"
        yield note(f"{what}; its IT lead installs the coordinator's, best before the run")
    yield from map(blocks, _refusals(site))
    if site.approval == "waits":
        run = f"its operator runs `fedtune client approve FOLDER {asked.run}`"
        yield blocks(f"the run waits for approval; {run}, before the run or when it has begun")
    for check in site.checks:
        if check.status != "ok":
            yield (blocks if check.status == "failed" else note)(_of_check(check))
    if site.days_left is not None and site.days_left < WARN_DAYS:
        left = (
            f"a certificate ends in {site.days_left} days"
            if site.days_left >= 0
            else "a certificate has ended"
        )
        yield note(f"{left}; the coordinator sends a bundle with a newer one, and its operator joins again")
    if dry is not None and dry.code is not None:
        stage = wording.STAGES[dry.stage] if dry.stage else "the dry round"
        yield blocks(
            f"failed at {stage} of the dry round ({dry.code}: {dry.reason}); {_DRY.get(dry.code, _ITS_LOG)}"
        )


def _refusals(site: SiteReadiness) -> Iterator[str]:
    for reason in dict.fromkeys((*site.train_refused, *site.evaluate_refused)):
        what = " and ".join(
            verb
            for verb, reasons in (("train", site.train_refused), ("evaluate", site.evaluate_refused))
            if reason in reasons
        )
        why = REASONS.get(reason, "a rule that this fedtune does not know")
        yield (
            f"its policy would refuse to {what} ({reason}: {why}); change the configuration, or its operator "
            "changes site.yaml and starts the client anew"
        )


def _of_check(check: SiteCheckResult) -> str:
    code = f" ({check.code})" if check.code else ""
    how = "failed" if check.status == "failed" else "has a remark"
    why = "its operator runs `fedtune client doctor FOLDER`, which says why"
    return f"its check of {check.name} {how}{code}; {why}"
