"""What each round did, as a table: one row a round, round 0 being the evaluation of the base."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from fedtune.observability.events import (
    ClientEvaluated,
    ClientFailed,
    ClientTrained,
    Event,
    GateJudged,
    QuorumMissed,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    SecureSum,
)
from fedtune.observability.statistics import mean, total
from fedtune.observability.timing import covered_seconds, work_intervals

__all__ = ["round_table"]


def round_table(kept: Iterable[Event]) -> list[dict[str, Any]]:
    """Return one row a round, in order.

    Args:
        kept: Events after the resume rule.

    Returns:
        Rows with ``round``, ``finished``, ``clients`` (those whose delta counted), ``failed``, ``factors``,
        ``held_out_loss`` (mean over the sites evaluated), ``held_out_losses`` (by site),
        ``personal_loss`` (mean over the sites that say one, of their own models), ``loss_before`` and
        ``loss_after`` (training loss, means over clients), ``aggregation_error``, ``exact``, ``staleness``
        (of each update, where sites train at their own pace), ``virtual_seconds`` (when it was aggregated, by
        a simulation's virtual clock), ``tokens``,
        ``tokens_per_second``, ``uplink_bytes`` and ``downlink_bytes`` (sums), ``secure`` (whether a secure
        sum was opened, false where the round is burnt, None in a plain round), ``passed`` (whether the gate
        let the round's adapter through, None without a gate), ``peak_memory_mib``, and where the time went:
        ``training_seconds``, ``evaluation_seconds``, ``other_seconds``.
    """
    by_round: dict[int, list[Event]] = {}
    for event in kept:
        if isinstance(event, _OF_A_ROUND):
            by_round.setdefault(event.round, []).append(event)
    return [_row(number, by_round[number]) for number in sorted(by_round)]


_OF_A_ROUND = (
    RoundStarted,
    ClientTrained,
    ClientFailed,
    QuorumMissed,
    SecureSum,
    RoundAggregated,
    GateJudged,
    ClientEvaluated,
    RoundFinished,
)


def _row(number: int, events: Sequence[Event]) -> dict[str, Any]:
    trained = [event for event in events if isinstance(event, ClientTrained)]
    evaluated = [event for event in events if isinstance(event, ClientEvaluated)]
    started = next((event for event in events if isinstance(event, RoundStarted)), None)
    aggregated = next((event for event in events if isinstance(event, RoundAggregated)), None)
    finished = next((event for event in events if isinstance(event, RoundFinished)), None)
    training = covered_seconds(work_intervals(trained))
    working = covered_seconds(work_intervals(events))
    span = max(event.time for event in events) - started.time if started else working
    tokens = total(event.tokens for event in trained)
    secure = next((event for event in events if isinstance(event, SecureSum)), None)
    travelled: list[ClientTrained | SecureSum] = [*trained, *([secure] if secure else [])]
    counted = dict.fromkeys(event.client for event in trained)  # once, who came more than once
    clients = list(secure.clients) if secure else list(counted)
    peaks = [event.peak_memory_mib for event in trained if event.peak_memory_mib is not None]
    return {
        "round": number,
        "finished": finished is not None,
        "clients": clients,
        "failed": [
            event.client
            for event in events
            # Who failed to train and was asked again with success is in the round.
            if isinstance(event, ClientFailed) and (event.stage == "evaluate" or event.client not in clients)
        ],
        "factors": list(started.factors) if started else [],
        "held_out_loss": mean(event.loss for event in evaluated),
        "held_out_losses": {event.client: event.loss for event in evaluated},
        "personal_loss": mean(event.personal_loss for event in evaluated if event.personal_loss is not None),
        "loss_before": mean(event.loss_before for event in trained),
        "loss_after": mean(event.loss_after for event in trained),
        "aggregation_error": aggregated.aggregation_error if aggregated else None,
        "exact": aggregated.exact if aggregated else None,
        "staleness": [event.staleness for event in trained if event.staleness is not None],
        "virtual_seconds": finished.virtual_seconds if finished else None,
        "tokens": tokens,
        "tokens_per_second": tokens / training if tokens is not None and training > 0 else None,
        "uplink_bytes": sum(event.uplink_bytes for event in travelled),
        "downlink_bytes": sum(event.downlink_bytes for event in travelled),
        "secure": None if secure is None else secure.opened,
        "passed": next((event.passed for event in events if isinstance(event, GateJudged)), None),
        "peak_memory_mib": max(peaks, default=None),
        "training_seconds": training,
        "evaluation_seconds": working - training,
        "other_seconds": max(0.0, span - working),
    }
