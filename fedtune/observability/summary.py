"""A run in one object: what ``fedtune report RUN --json`` prints, computed from the events alone.

The keys are an interface; docs/reference/rounds.md says what each means. Rules that are not plain from a key:

* Means over sites are unweighted, and ``base`` and ``federated`` are over the same sites: those evaluated
  before the first round and after the last finished one. A site whose evaluation failed is left out of both;
  a site whose loss was not a number makes the mean null, since leaving it out would flatter the run.
* ``personalised`` is of the models that are the sites' own, as far as the sites say it; under ``fedsa``
  ``federated`` is of these as well, for there is no other.
* ``local`` and ``centralized`` are null unless they were measured at every one of those sites.
* Seconds add up over the sessions of a resumed run. A session that was killed counts up to its last event.
* Work that a resume voided has cost its time: it counts in ``seconds``, and as covered in
  ``overhead_fraction``, but in no loss, no traffic and no number of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from fedtune.observability.events import (
    BackdoorMeasured,
    BaselineFinished,
    ClientEvaluated,
    ClientFailed,
    ClientTrained,
    Clustered,
    Event,
    GateJudged,
    GroupDropped,
    ModelLoaded,
    RoundAggregated,
    RoundFinished,
    RunFinished,
    RunStarted,
    SecureSum,
    Sites,
    effective_events,
)
from fedtune.observability.round_table import round_table
from fedtune.observability.statistics import mean, total
from fedtune.observability.timing import covered_seconds, overhead_fraction, sessions, work_intervals

__all__ = ["summarise"]

E = TypeVar("E", bound=Event)


def summarise(events: Iterable[Event]) -> dict[str, Any]:
    """Sum up a run, finished or not.

    Args:
        events: All events of its log, in order, voided ones included.

    Returns:
        A JSON-ready object; a number that was not measured is None. ``status`` is ``unfinished`` while the
        last session has no ``run_finished``: it goes on, or was killed.
    """
    recorded = list(events)
    kept = effective_events(recorded)
    spans = sessions(recorded)
    peaks = [
        event.peak_memory_mib
        for event in recorded
        if isinstance(event, ClientTrained | RunFinished) and event.peak_memory_mib is not None
    ]
    return {
        **_identity(kept),
        "sessions": len(spans),
        "seconds": math.fsum(span.seconds for span in spans),
        "load_seconds": math.fsum(span.load_seconds for span in spans),
        "overhead_fraction": overhead_fraction(recorded),
        **_losses(kept),
        **_aggregation(kept),
        "clusters": _clusters(kept),
        **_pace(kept),
        **_work(kept),
        **_secure(kept),
        "rolled_back_rounds": [event.round for event in _of(kept, GateJudged) if not event.passed],
        "backdoor": _backdoor(kept),
        "peak_memory_mib": max(peaks, default=None),
        "failures": [
            {key: getattr(event, key) for key in ("round", "client", "stage", "code", "reason")}
            for event in _of(kept, ClientFailed)
        ],
        "round_table": round_table(kept),
    }


def _of(events: Iterable[Event], kind: type[E]) -> list[E]:
    return [event for event in events if isinstance(event, kind)]


def _identity(kept: Sequence[Event]) -> dict[str, Any]:
    started = _of(kept, RunStarted)[-1:]
    loaded = _of(kept, ModelLoaded)[-1:]
    sites = _of(kept, Sites)[-1:]
    finished = _of(kept, RunFinished)[-1:]
    return {
        "name": started[0].name if started else None,
        "status": finished[0].status if finished else "unfinished",
        "reason": finished[0].reason if finished else None,
        "version": started[0].version if started else None,
        "model": loaded[0].name if loaded else None,
        "rounds": sum(event.round > 0 for event in _of(kept, RoundFinished)),
        "clients": len(sites[0].sites) if sites else 0,
        "skipped_rows": sites[0].skipped_rows if sites else 0,
    }


def _losses(kept: Sequence[Event]) -> dict[str, Any]:
    evaluated = {(event.round, event.client): event.loss for event in _of(kept, ClientEvaluated)}
    own = {
        (event.round, event.client): event.personal_loss
        for event in _of(kept, ClientEvaluated)
        if event.personal_loss is not None
    }
    done = {event.round for event in _of(kept, RoundFinished) if event.round > 0} & {
        round_ for round_, _ in evaluated
    }
    last = max(done, default=None)
    rows = {site.name: site.train_examples for event in _of(kept, Sites)[-1:] for site in event.sites}
    names = [*rows, *dict.fromkeys(name for _, name in evaluated if name not in rows)]
    baselines = _of(kept, BaselineFinished)
    alone = {event.site: event.held_out_loss.get(event.site) for event in baselines if event.site is not None}
    pooled = {
        name: loss for event in baselines if event.site is None for name, loss in event.held_out_loss.items()
    }
    sites = {}
    for name in names:
        federated, local = evaluated.get((last, name)) if last is not None else None, alone.get(name)
        personalised = own.get((last, name)) if last is not None else None
        sites[name] = {
            "train_examples": rows.get(name),
            "base": evaluated.get((0, name)),
            "federated": federated,
            "personalised": personalised,
            "local": local,
            "centralized": pooled.get(name),
            "better_than_local": None if federated is None or local is None else federated < local,
            "better_personalised": None
            if federated is None or personalised is None
            else personalised < federated,
        }
    compared = [
        name for name in names if (0, name) in evaluated and (last is None or (last, name) in evaluated)
    ]
    means = {
        key: mean(sites[name][key] for name in compared)
        for key in ("base", "federated", "personalised", "local", "centralized")
    }
    return {
        "held_out_loss": means,
        "federated_gain_over_centralized_gain": _gain_ratio(means),
        "sites": sites,
        "sites_compared": compared,
        "not_better_personalised": [name for name in names if sites[name]["better_personalised"] is False],
        "not_better_than_local": [name for name in names if sites[name]["better_than_local"] is False],
        "last_evaluated_round": last,
    }


def _gain_ratio(means: dict[str, float | None]) -> float | None:
    base, federated, centralized = means["base"], means["federated"], means["centralized"]
    if base is None or federated is None or centralized is None or base == centralized:
        return None
    return (base - federated) / (base - centralized)


def _aggregation(kept: Sequence[Event]) -> dict[str, Any]:
    aggregated = _of(kept, RoundAggregated)
    errors = [event.aggregation_error for event in aggregated]
    return {
        "aggregation_error": max((error for error in errors if error is not None), default=None),
        "aggregation_errors": errors,
        "exact": all(event.exact for event in aggregated) if aggregated else None,
    }


def _clusters(kept: Sequence[Event]) -> dict[str, Any] | None:
    told = _of(kept, Clustered)
    if not told:
        return None
    formed = told[0]
    return {
        "round": formed.round,
        "members": [list(names) for names in told[-1].clusters],
        "similarity_within": formed.similarity_within,
        "similarity_between": formed.similarity_between,
        "merge_distances": list(formed.merge_distances),
    }


def _pace(kept: Sequence[Event]) -> dict[str, Any]:
    late = [event.staleness for event in _of(kept, ClientTrained) if event.staleness is not None]
    reached = [
        event.virtual_seconds for event in _of(kept, RoundFinished) if event.virtual_seconds is not None
    ]
    return {
        "virtual_seconds": max(reached, default=None),
        "staleness_mean": mean(late),
        "staleness_max": max(late, default=None),
    }


def _work(kept: Sequence[Event]) -> dict[str, Any]:
    trained = _of(kept, ClientTrained)
    travelled: list[ClientTrained | SecureSum] = [*trained, *_of(kept, SecureSum)]
    uplink = sum(event.uplink_bytes for event in travelled)
    downlink = sum(event.downlink_bytes for event in travelled)
    tokens = total(event.tokens for event in trained)
    seconds = covered_seconds(work_intervals(trained))
    return {
        "uplink_bytes": uplink / len(trained) if trained else None,
        "downlink_bytes": downlink / len(trained) if trained else None,
        "uplink_bytes_total": uplink,
        "downlink_bytes_total": downlink,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if tokens is not None and seconds > 0 else None,
    }


def _secure(kept: Sequence[Event]) -> dict[str, Any]:
    sums = _of(kept, SecureSum)
    return {
        "secure_rounds": sum(event.opened for event in sums),
        "burnt_rounds": [event.round for event in sums if not event.opened],
        "dropped_groups": [
            {key: getattr(event, key) for key in ("round", "group", "code", "reason")}
            for event in _of(kept, GroupDropped)
        ],
        "secure_seconds": math.fsum(event.seconds for event in sums),
    }


def _backdoor(kept: Sequence[Event]) -> dict[str, Any] | None:
    measured = _of(kept, BackdoorMeasured)[-1:]
    keys = ("prompts", "success", "success_without_trigger", "success_before", "target_loss", "right_loss")
    return {key: getattr(measured[0], key) for key in keys} if measured else None
