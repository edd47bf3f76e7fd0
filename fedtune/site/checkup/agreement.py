"""A coordinator's configuration before the site's own policy: what would be refused, and why.

The words are those of the site's own log, with the limits. They are for its operator and for nobody else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime
from typing import Final, Literal

from fedtune.config.schema import Config
from fedtune.config.wire import config_hash
from fedtune.keys.joining import Connection
from fedtune.secagg.entry import fingerprint
from fedtune.site.checkup.making import as_finding
from fedtune.site.findings import Finding, failed, ok, warning
from fedtune.site.policy import Asked, Coordinator, Usage, decide
from fedtune.site.policy_asked import local_time
from fedtune.site.policy_schema import ANY, INSTALLED, SitePolicy

__all__ = ["agreement"]

_KINDS: Final[tuple[Literal["train", "evaluate"], ...]] = ("train", "evaluate")


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
    federation that trains by night. The bundle is taken to be the installed one, or one that the policy
    names instead.

    Args:
        policy: The site's own.
        config: The coordinator's.
        connection: Whom the site joined.
        base_model: Hash of the model at this site; None if it is not known, and then taken to be allowed.
        memory_mib: Estimate of training at this site; None if it is not known, and then taken to be nothing.
        now: This moment, with its zone.
    """
    any_hour = dataclasses.replace(policy, hours=None)
    refused: dict[str, Finding] = {}
    if config.backend.name != "deployment":
        refused["backend"] = failed(
            "FT645",
            f"this configuration is of a simulation: backend.name is {config.backend.name}, not deployment",
            fix="ask the coordinator for the configuration of `fedtune server run`",
        )
    named = [bundle for bundle in policy.bundles if bundle != INSTALLED]
    own = INSTALLED in policy.bundles or not named
    for kind in _KINDS:
        request = Asked.of(
            config,
            kind=kind,
            coordinator=Coordinator(
                name=connection.federation, fingerprint=fingerprint(connection.coordinator)
            ),
            round_number=1,
            bundle="the installed one" if own else named[0],
            bundle_installed=own,
            base_model=base_model or next(iter(policy.base_models), "unknown"),
            memory_mib=memory_mib or 0.0,
        )
        decision = decide(any_hour, request, Usage(), now)
        for reason, problem in zip(decision.reasons, decision.problems, strict=True):
            refused.setdefault(reason, as_finding(problem))
    yield from refused.values()
    if not refused:
        asked = (
            "begins" if _preapproved(policy, config) else "waits for `fedtune client approve` and then begins"
        )
        yield ok(f"nothing in the configuration of {config.name} is refused: the run {asked}")
    yield from _times(policy, config, now)


def _preapproved(policy: SitePolicy, config: Config) -> bool:
    return not {ANY, config_hash(config)}.isdisjoint(policy.preapproved)


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
