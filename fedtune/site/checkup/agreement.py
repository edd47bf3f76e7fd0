"""A coordinator's configuration before the site's own policy: what would be refused, and why.

The words are those of the site's own log, with the limits. They are for its operator and for nobody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal

from fedtune.config.schema import Config
from fedtune.keys.joining import Connection
from fedtune.secagg.entry import fingerprint
from fedtune.site.checkup.making import as_finding
from fedtune.site.findings import Finding, ok, warning
from fedtune.site.policy import Asked, Coordinator, Usage, decide
from fedtune.site.policy_asked import local_time
from fedtune.site.policy_schema import INSTALLED, SitePolicy

__all__ = ["agreement", "asked_by"]

_KINDS: Final[tuple[Literal["train", "evaluate"], ...]] = ("train", "evaluate")


def asked_by(connection: Connection, policy: SitePolicy) -> Coordinator:
    """Who will ask: the coordinator that this site joined, under the name that the policy has for it."""
    known = fingerprint(connection.coordinator)
    names = [name for name, pinned in policy.coordinators.items() if pinned == known]
    return Coordinator(name=names[0] if names else connection.federation, fingerprint=known)


def agreement(
    policy: SitePolicy,
    config: Config,
    connection: Connection,
    *,
    base_model: str | None,
    memory_mib: float | None,
    now: datetime,
) -> Iterator[Finding]:
    """Everything in a configuration that the policy refuses, or one finding that nothing is.

    Hours are a matter of when, and are told apart: a doctor that is called by day finds nothing wrong with a
    federation that trains by night. The bundle is taken to be one that the policy names.

    Args:
        policy: The site's own.
        config: The coordinator's.
        connection: Whom the site joined.
        base_model: Hash of the model at this site; None if it is not known, and then taken to be allowed.
        memory_mib: Estimate of training at this site; None if it is not known, and then taken to be nothing.
        now: This moment, with its zone.
    """
    any_hour = dataclasses.replace(policy, hours=None)
    named = [bundle for bundle in policy.bundles if bundle != INSTALLED]
    refused: dict[str, Finding] = {}
    for kind in _KINDS:
        request = Asked.of(
            config,
            kind=kind,
            coordinator=asked_by(connection, policy),
            round_number=1,
            bundle=named[0] if named else "the installed one",
            bundle_installed=True,
            base_model=base_model or next(iter(policy.base_models), "unknown"),
            memory_mib=memory_mib or 0.0,
        )
        decision = decide(any_hour, request, Usage(), now)
        for reason, problem in zip(decision.reasons, decision.problems, strict=True):
            refused.setdefault(reason, as_finding(problem))
    yield from refused.values()
    if not refused:
        yield ok(f"nothing in the configuration of {config.name} is refused")
    yield from _times(policy, config, now)


def _times(policy: SitePolicy, config: Config, now: datetime) -> Iterator[Finding]:
    """When it trains, and how many days that takes."""
    if policy.hours is not None:
        yield ok(
            f"requests are accepted from {policy.hours.start} to {policy.hours.end} {policy.timezone}, where "
            f"it is {local_time(policy, now):%H:%M} now"
        )
    rounds, a_day = config.federation.rounds, policy.limits.rounds_per_day
    if a_day is not None and 0 < a_day < rounds:
        yield warning(
            f"the configuration has {rounds} rounds, the policy allows {a_day} a day: the run takes at least "
            f"{-(-rounds // a_day)} days",
            fix="tell the coordinator, or raise limits.rounds_per_day",
        )
