"""The held-out loss of a global adapter, as the sites measure it."""

from __future__ import annotations

from flwr.app import Message

from fedtune.aggregation.carrying import Carried
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.downlink import downlink
from fedtune.federation.replies import require_own
from fedtune.federation.wire import EvaluateReply, EvaluateRequest
from fedtune.models.adapter import Adapter
from fedtune.observability.events import ClientEvaluated

__all__ = ["loss_at_sites"]


def loss_at_sites(sites: Dialogue, round_number: int, adapter: Adapter, carried: Carried) -> float | None:
    """Ask all sites, record what each says, and return the unweighted mean of those that hold rows out.

    Args:
        sites: The way to them.
        round_number: Round after which the adapter is; 0 for the start.
        adapter: The global adapter.
        carried: What the aggregation method remembers; a side-car among it travels.
    """

    def accept(name: str, reply: EvaluateReply, _: Message) -> None:
        require_own(name, reply, round_number)
        if reply.loss is None:
            return
        sites.record(
            ClientEvaluated(
                round=round_number,
                client=name,
                loss=reply.loss,
                personal_loss=reply.personal_loss,
                tokens=reply.tokens,
                examples=reply.examples,
                started=reply.started,
                finished=reply.finished,
            )
        )

    replies = sites.ask(
        "evaluate",
        round_number,
        EvaluateRequest(round=round_number),
        to=sorted(sites.nodes),
        expect=EvaluateReply,
        arrays=downlink(adapter, carried),
        accept=accept,
    )
    # In the order of the names: a float sum depends on its order.
    losses = [replies[name].loss for name in sorted(replies)]
    known = [loss for loss in losses if loss is not None]
    return sum(known) / len(known) if known else None
