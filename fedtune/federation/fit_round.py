"""A round that trains nothing: sites fit B to the mean A that came of what they trained in the round before.

Whom the server asks, and what it does where there is nothing to fit, is here beside what a site does. A fit
round asks the sites whose A is in the opened sum of the round before. Where nobody can fit any more, B stays
as it was: the adapter then is the mean A beside the old B, and the next round trains from it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np

from fedtune.aggregation.projection import fitted_B
from fedtune.config.derived import clip_bound
from fedtune.errors import FederationError
from fedtune.federation.kept_training import KeptTraining, require_conditioned
from fedtune.federation.local_round import held_reply
from fedtune.federation.secure_site import SecureSite
from fedtune.federation.site import Site
from fedtune.federation.wire import TrainReply, TrainRequest
from fedtune.models.adapter import Adapter, AdapterSpec
from fedtune.observability.events import ClientFailed, Event, SecureSum, effective_events
from fedtune.training.delta import Delta
from fedtune.updates.protect import protect

__all__ = ["FitCohort", "Received", "fit_cohort", "fit_kept"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Received:
    """What a site was sent, and what it is for.

    Attributes:
        adapter: The global adapter.
        spec: Of it.
        base_hash: Of the site's base model, in hex.
    """

    adapter: Adapter
    spec: AdapterSpec
    base_hash: str


def fit_kept(
    request: TrainRequest, site: Site, secure: SecureSite, received: Received, told: Callable[[Delta], Delta]
) -> TrainReply:
    """Fit what a site keeps, and hold the result for a secure sum.

    Entries beyond the clip bound are clipped, as those of every update are; the site's own log says how many.

    Args:
        request: Of a round that fits.
        site: The site.
        secure: What it has for secure aggregation.
        received: What came.
        told: What the site says that it has; itself, at all but false ones of a simulation.

    Raises:
        FederationError: FT615, the site has nothing to fit; FT616, an A whose rows hardly differ.
        RunError: FT725, what it keeps is damaged.
        SecureAggregationError: As `SecureSite.admit`, `facts_of_fit` and `hold`.
        UpdateError: FT504, the fit is not finite.
    """
    started = time.time()
    adapter = received.adapter
    memory = KeptTraining(site.state_dir, site.name)
    secure.admit(request, adapter, site.config, received.spec)
    training = memory.of(request.round - 1)
    facts = secure.facts_of_fit(request, adapter, training, config=site.config, base_hash=received.base_hash)
    if training is not None and not secure.member.holds(facts):
        require_conditioned(adapter, request.round)
        delta = fitted_B(training.adapter, adapter)
        _log_clipped(delta, clip_bound(site.config), site.name, request.round)
        secure.hold(protect(told(delta)), facts, request, site.config, received.spec)
    return held_reply(request, site, steps=0, started=started)


def _log_clipped(delta: Delta, bound: float, site: str, round_number: int) -> None:
    clipped = sum(int(np.count_nonzero(np.abs(tensor) > bound)) for tensor in delta.tensors.values())
    if clipped:
        values = sum(tensor.size for tensor in delta.tensors.values())
        logger.warning(
            "%s, round %d: %d of %d values of the fit are beyond the clip bound %g, and are clipped",
            site, round_number, clipped, values, bound,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FitCohort:
    """Whom a round that fits asks.

    Attributes:
        round: The round.
        clients: Names of those whose update of the round before was opened.
        broken: Why nobody is asked; None where they are.
    """

    round: int
    clients: tuple[str, ...]
    broken: str | None

    def among(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of some names that are asked, in their order."""
        return tuple(name for name in names if name in self.clients)

    def quorum(self, members: Collection[str], least: int | None) -> int:
        """Return how many have to fit: ``federation.min_replies``, else all who are still members."""
        return least or len(self.among(members))

    def never(self, failures: Iterable[ClientFailed], quorum: int) -> str | None:
        """Return why the round can never have its quorum; None where it may have it later.

        Args:
            failures: All of the run so far.
            quorum: How many have to fit.
        """
        lost = {each.client for each in failures if (each.round, each.code) == (self.round, "FT615")}
        left = len(set(self.clients) - lost)
        if left >= quorum:
            return None
        return f"{len(lost)} sites have nothing left to fit, {left} have, and {quorum} are required: B stays"

    def unfitted(self, reason: str) -> SecureSum:
        """Return the record of a round in which nothing was fitted."""
        return SecureSum(
            round=self.round,
            opened=False,
            reason=reason,
            clients=(),
            attempts=0,
            seconds=0.0,
            uplink_bytes=0,
            downlink_bytes=0,
        )


def fit_cohort(round_number: int, adapter: Adapter, record: Iterable[Event]) -> FitCohort:
    """Return whom a round that fits asks.

    Args:
        round_number: The round.
        adapter: The global adapter, with the mean A of the round before.
        record: Events of the run.
    """
    clients: tuple[str, ...] = ()
    for event in effective_events(record):
        if isinstance(event, SecureSum) and event.round == round_number - 1:
            clients = event.clients if event.opened else ()
    broken = None if clients else f"round {round_number - 1} is burnt: there is nothing to fit, B stays"
    if clients:
        try:
            require_conditioned(adapter, round_number)
        except FederationError as error:
            broken = f"{error.problems[0].what}: B stays"
    return FitCohort(round=round_number, clients=clients, broken=broken)
