"""Is every site ready for a run? Each is asked once; nothing is trained, and nothing has to be approved."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

from flwr.serverapp import Grid

import fedtune
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.wire import PreflightReply, PreflightRequest
from fedtune.observability.events import Preflight, SiteCheckResult, SiteReadiness

__all__ = ["ask_sites"]

POLL_SECONDS = 1.0
NOT_CONNECTED = "FT612"


@dataclass(kw_only=True)
class _Inquiry:
    """Who has answered, and what; who has failed is in the dialogue."""

    sites: Dialogue
    request: PreflightRequest
    answers: dict[str, PreflightReply] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)

    def ask(self, there: Mapping[str, int]) -> None:
        """Ask those who were not asked yet."""
        new = {name: node for name, node in there.items() if name not in self.asked}
        if not new:
            return
        self.asked |= new.keys()
        self.sites.nodes |= new
        self.answers |= self.sites.ask("preflight", 0, self.request, to=new, expect=PreflightReply)

    def row(self, name: str) -> SiteReadiness:
        """Return what is known of a site."""
        answer = self.answers.get(name)
        if name not in self.asked:
            reason = "it was not connected"
            return SiteReadiness(name=name, connected=False, code=NOT_CONNECTED, reason=reason)
        if answer is None:
            failure = next(each for each in self.sites.failures if each.client == name)
            return SiteReadiness(name=name, connected=True, code=failure.code, reason=failure.reason)
        if answer.site != name:
            reason = f"it calls itself {answer.site:.80}"
            return SiteReadiness(name=name, connected=True, code="FT521", reason=reason)
        return SiteReadiness(
            name=name,
            connected=True,
            code=None,
            reason=None,
            version=answer.version,
            flwr=answer.flwr,
            python=answer.python,
            torch=answer.torch,
            train_refused=answer.train_refused,
            evaluate_refused=answer.evaluate_refused,
            approval=answer.approval,
            checks=tuple(
                SiteCheckResult(name=check.name, status=check.status, code=check.code)
                for check in answer.checks
            ),
            checks_age_seconds=answer.checks_age_seconds,
            days_left=answer.days_left,
        )


def ask_sites(
    grid: Grid,
    request: PreflightRequest,
    *,
    run: str,
    registered: Callable[[], Mapping[int, str]],
    timeout_seconds: float,
) -> Preflight:
    """Ask each enrolled site once, as soon as it is connected.

    Args:
        grid: Flower's way to the sites.
        request: What is asked.
        run: Name of the run that it is about.
        registered: Name of each node that is enrolled.
        timeout_seconds: How long to wait, for sites to connect and for their answers.

    Returns:
        A row for each enrolled site, by name.
    """
    started = time.monotonic()
    dialogue = Dialogue(grid=grid, timeout_seconds=timeout_seconds, record=lambda event: None)
    inquiry = _Inquiry(sites=dialogue, request=request)
    while True:
        online = set(grid.get_node_ids())
        names = registered()
        left = timeout_seconds - (time.monotonic() - started)
        dialogue.timeout_seconds = max(POLL_SECONDS, round(left, 1))
        inquiry.ask({name: node for node, name in names.items() if node in online})
        left = timeout_seconds - (time.monotonic() - started)
        if left <= 0 or inquiry.asked >= set(names.values()):
            break
        time.sleep(min(POLL_SECONDS, left))
    return Preflight(
        run=run,
        version=fedtune.__version__,
        flwr=version("flwr"),
        python=platform.python_version(),
        torch=version("torch"),
        seconds=time.monotonic() - started,
        sites=tuple(inquiry.row(name) for name in sorted(names.values())),
    )
