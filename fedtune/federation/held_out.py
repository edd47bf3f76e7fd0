"""The held-out loss of a global adapter, as the sites measure it."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Message

from fedtune.aggregation.carrying import Carried
from fedtune.config.schema import Config
from fedtune.federation.dialogue import Dialogue
from fedtune.federation.downlink import downlink_to_test
from fedtune.federation.replies import require_own
from fedtune.federation.sampling import evaluated_clients
from fedtune.federation.wire import EvaluateReply, EvaluateRequest
from fedtune.models.adapter import Adapter
from fedtune.observability.events import ClientEvaluated

__all__ = ["loss_at_sites", "losses_at_sites", "mean_loss"]


def loss_at_sites(
    sites: Dialogue, config: Config, round_number: int, adapter: Adapter, carried: Carried
) -> float | None:
    """Ask sites as `losses_at_sites` does, and return the mean of what they say."""
    return mean_loss(losses_at_sites(sites, config, round_number, adapter, carried))


def mean_loss(losses: Mapping[str, float]) -> float | None:
    """Return the unweighted mean over sites; None where no site holds rows out and says so."""
    # In the order of the names: a float sum depends on its order.
    known = [losses[name] for name in sorted(losses)]
    return sum(known) / len(known) if known else None


def losses_at_sites(
    sites: Dialogue, config: Config, round_number: int, adapter: Adapter, carried: Carried
) -> dict[str, float]:
    """Ask sites, record what each says, and return the loss of those that hold rows out and say it.

    Args:
        sites: The way to them.
        config: The run's; ``evaluation.clients`` says how many are asked.
        round_number: Round after which the adapter is; 0 for the start.
        adapter: The global adapter.
        carried: What the aggregation method remembers; a side-car among it travels, and to each site the
            adapter of its cluster.
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
        to=evaluated_clients(sites.nodes, count=config.evaluation.clients, seed=config.seed),
        expect=EvaluateReply,
        arrays=downlink_to_test(adapter, carried),
        accept=accept,
    )
    return {name: reply.loss for name, reply in sorted(replies.items()) if reply.loss is not None}
