"""What the server makes of a site's reply to training: whose it is, how much it counts, what is recorded."""

from __future__ import annotations

from fedtune.aggregation.weighting import client_weight
from fedtune.config.schema import Config
from fedtune.errors import Problem, UpdateError
from fedtune.federation.wire import EvaluateReply, TrainReply
from fedtune.observability.events import ClientTrained

__all__ = ["require_own", "trained", "weight_of"]


def require_own(name: str, reply: TrainReply | EvaluateReply, round_number: int) -> None:
    """Refuse a reply that speaks for another site or another round.

    Raises:
        UpdateError: FT521.
    """
    if (reply.site, reply.round) != (name, round_number):
        raise UpdateError(
            Problem(
                code="FT521",
                what=f"a reply of {reply.site} for round {reply.round} came from {name}",
                where=f"round {round_number}",
                fix="restart that site's client",
            )
        )


def weight_of(config: Config, reply: TrainReply) -> float:
    """Return how much an update counts beside others, not normalised.

    Raises:
        UpdateError: FT522, the site does not say what ``aggregation.weighting`` needs.
    """
    weighting = config.aggregation.weighting
    needed = {"examples": reply.examples, "tokens": reply.response_tokens}.get(weighting, 0)
    if needed is None:
        raise UpdateError(
            Problem(
                code="FT522",
                what=f"{reply.site} does not say how many {weighting} it trained on",
                where=f"round {reply.round}, aggregation.weighting={weighting}",
                fix=f"let the site name {weighting} in federation.metrics, or weigh by uniform",
            )
        )
    return client_weight(weighting, examples=reply.examples or 0, response_tokens=reply.response_tokens or 0)


def trained(
    name: str,
    reply: TrainReply,
    *,
    round_number: int,
    weight: float,
    up: int,
    down: int,
    norm: float | None,
    training: int | None = None,
    staleness: int | None = None,
    virtual_seconds: float | None = None,
) -> ClientTrained:
    """Return what is recorded of an update that counts.

    Args:
        name: Of the site.
        reply: What it says.
        round_number: The round that the update counts in.
        weight: Of the update.
        up: Bytes that the site sent.
        down: Bytes that it received.
        norm: Of the update; None where it cannot be seen.
        training: Which of the site's trainings it was, where the server's rounds are not the sites'.
        staleness: Steps of the server since the adapter that it began with, likewise.
        virtual_seconds: Virtual time of its arrival, likewise.
    """
    return ClientTrained(
        round=round_number,
        client=name,
        weight=weight,
        examples=reply.examples,
        tokens=reply.tokens,
        steps=reply.steps,
        loss_before=reply.loss_before,
        loss_after=reply.loss_after,
        started=reply.started,
        finished=reply.finished,
        peak_memory_mib=reply.peak_memory_mib,
        uplink_bytes=up,
        downlink_bytes=down,
        delta_norm=norm,
        training=training,
        staleness=staleness,
        virtual_seconds=virtual_seconds,
    )
