"""The sites' own steps after the last round, as the server asks for them (``personal=fine_tuning``)."""

from __future__ import annotations

from flwr.app import Message

from fedtune.aggregation.carrying import Carried
from fedtune.config.schema import Config
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.downlink import downlink
from fedtune.federation.replies import require_own
from fedtune.federation.requests import fine_tuning_request
from fedtune.federation.wire import TrainReply
from fedtune.models.adapter import Adapter
from fedtune.observability.events import ClientFineTuned

__all__ = ["fine_tune_at_sites"]


def fine_tune_at_sites(sites: Dialogue, config: Config, adapter: Adapter, carried: Carried) -> None:
    """Ask every site that is there to take steps of its own, and record who did; no update comes back.

    A site that fails has no model of its own, is recorded as failed, and holds up nobody.

    Args:
        sites: The way to them.
        config: The run's.
        adapter: The final global adapter.
        carried: What the aggregation method remembers; a side-car among it travels.
    """
    request, rounds = fine_tuning_request(config), config.federation.rounds

    def accept(name: str, reply: TrainReply, _: Message) -> None:
        require_own(name, reply, request.round)
        sites.record(
            ClientFineTuned(
                round=rounds,
                client=name,
                tokens=reply.tokens,
                steps=reply.steps,
                loss_before=reply.loss_before,
                loss_after=reply.loss_after,
                started=reply.started,
                finished=reply.finished,
            )
        )

    sites.ask(
        "train",
        rounds,
        request,
        to=sorted(sites.nodes),
        expect=TrainReply,
        arrays=downlink(adapter, carried),
        accept=accept,
    )
