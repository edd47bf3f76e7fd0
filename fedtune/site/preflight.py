"""What a site answers to ``query.preflight``: is it ready for a run, without a word of its data.

Of its own checks the name, ``ok``, ``warning`` or ``failed``, and a code leave; of its policy the reasons
that it would give with FT640. Nothing is trained and nothing counts for a limit.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Final

import fedtune
from fedtune.config.schema import Config
from fedtune.federation.wire import PROTOCOL, CheckName, PreflightReply, SiteCheck
from fedtune.keys.inspection import inspect
from fedtune.site.admission import Foretold
from fedtune.site.checkup.run import run_local_checks
from fedtune.site.findings import Check
from fedtune.site.folder import SiteFolder

__all__ = ["CHECKS_SECONDS", "Readiness", "told_checks"]

CHECKS_SECONDS: Final = 60.0
"""A site makes all checks this often at most; between, it tells what it found last."""

_SAME: Final[dict[str, CheckName]] = {
    "keys": "keys",
    "joining": "joining",
    "site.yaml": "site.yaml",
    "client.yaml": "client.yaml",
    "configuration": "configuration",
    "roster": "roster",
    "base model": "base model",
    "data": "data",
    "rows": "rows",
    "memory": "memory",
    "threads": "threads",
    "clock": "clock",
}
_BEGINNINGS: Final[dict[str, CheckName]] = {
    "base model ": "base model",
    "hash of ": "hash of the base model",
    "data ": "data",
    "folder of ": "folders",
    "disk of ": "disks",
}
"""Names of checks that go on with a path or with the name of a model, which stay here."""

_WORST_FIRST: Final = ("failed", "warning", "ok")


class Readiness:
    """Makes a site's checks, once a minute at most, and puts its answers together.

    Args:
        folder: The site's.
        name: Its name.
        seconds: Gives a time that never goes back.
    """

    def __init__(
        self, folder: SiteFolder, name: str, *, seconds: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder, self._name, self._seconds = folder, name, seconds
        self._made: tuple[float, tuple[SiteCheck, ...]] | None = None

    def reply(self, config: Config, answer: Foretold) -> PreflightReply:
        """Return what the site says.

        Args:
            config: That is asked about.
            answer: Of the policy and the operator.
        """
        at, checks = self._checks(config)
        return PreflightReply(
            protocol=PROTOCOL,
            site=self._name,
            version=fedtune.__version__,
            flwr=version("flwr"),
            python=platform.python_version(),
            torch=version("torch"),
            train_refused=answer.train_refused,
            evaluate_refused=answer.evaluate_refused,
            approval="approved" if answer.approved else "waits",
            checks=checks,
            checks_age_seconds=max(0.0, self._seconds() - at),
            days_left=self._days_left(),
        )

    def _checks(self, config: Config) -> tuple[float, tuple[SiteCheck, ...]]:
        """Return when the checks were made, and how they ended; for whatever configuration that was."""
        if self._made is None or self._seconds() - self._made[0] >= CHECKS_SECONDS:
            found = told_checks(run_local_checks(self._folder.path, config=config))
            self._made = self._seconds(), found
        return self._made

    def _days_left(self) -> int | None:
        files = inspect(self._folder.path, datetime.now(UTC))
        return min((file.days_left for file in files if file.days_left is not None), default=None)


def told_checks(checks: Iterable[Check]) -> tuple[SiteCheck, ...]:
    """Return what may be told of checks: of each name its worst status, with every code of it.

    Args:
        checks: With names and findings that stay at the site.
    """
    found: dict[CheckName, list[SiteCheck]] = {}
    for check in checks:
        name = _told(check.name)
        found.setdefault(name, []).append(SiteCheck(name=name, status=check.status, code=check.code))
    return tuple(each for ended in found.values() for each in _worst(ended))


def _worst(ended: list[SiteCheck]) -> Iterable[SiteCheck]:
    status = min((each.status for each in ended), key=_WORST_FIRST.index)
    return dict.fromkeys(each for each in ended if each.status == status)


def _told(name: str) -> CheckName:
    if name in _SAME:
        return _SAME[name]
    return next((told for begin, told in _BEGINNINGS.items() if name.startswith(begin)), "other")
