"""What the model says before and after: answers to held-out prompts, for a person to read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedtune.config.methods import method
from fedtune.data.examples import Example
from fedtune.evaluation.generate import generate
from fedtune.federation.downlink import placed
from fedtune.federation.own_factors import OwnFactors
from fedtune.models.adapter import Adapter, initial_adapter
from fedtune.models.hardware import set_threads
from fedtune.observability.events import Generated
from fedtune.simulation.sites import VirtualSites

__all__ = ["generate_samples", "in_turn"]


def generate_samples(sites: VirtualSites, adapter: Adapter, side_car: Adapter) -> Iterator[Generated]:
    """Answer ``evaluation.generations`` held-out prompts with the base and with the federated model.

    The prompts are the first held-out rows of the sites in turn, so they come from different sites as long
    as there are enough of them. Where sites keep factors of their own, each prompt is answered by its
    site's. In a simulation all rows are this machine's own; a site sends no text.

    Args:
        sites: The sites, whose held-out rows are asked.
        adapter: The federated adapter.
        side_car: What stands beside it; empty for nothing.

    Yields:
        One event a prompt.
    """
    config = sites.config
    chosen = [(site, row) for site, row in in_turn(sites) if row.turns][: config.evaluation.generations]
    if not chosen:
        return
    set_threads(sites.threads)
    model = sites.model()
    base = initial_adapter(model.spec, config.seed)

    def answers(weights: Adapter, beside: Adapter, prompts: Sequence[Example]) -> list[str]:
        with placed(model, weights, beside):
            return generate(model, prompts, data=config.data, max_new_tokens=config.evaluation.max_new_tokens)

    prompts = [example for _, example in chosen]
    before = answers(base, {}, prompts)
    if method(config.aggregation.method).kept:
        folder = sites.site(0).state_dir
        after = [
            answers(OwnFactors(folder, site).personal(adapter, config.federation.rounds + 1), {}, [example])[
                0
            ]
            for site, example in chosen
        ]
    else:
        after = answers(adapter, side_car, prompts)
    for (site, example), was, now in zip(chosen, before, after, strict=True):
        yield Generated(
            site=site, prompt=_asked(example), reference=_expected(example), before=was, after=now
        )


def in_turn(sites: VirtualSites) -> list[tuple[str, Example]]:
    """Return every held-out row with its site's name: the first of each site, then the second, and so on."""
    held_out = [sites.held_out_examples(index) for index in range(len(sites))]
    depth = max((len(rows) for rows in held_out), default=0)
    return [
        (sites.partition.names[index], rows[level])
        for level in range(depth)
        for index, rows in enumerate(held_out)
        if level < len(rows)
    ]


def _asked(example: Example) -> str:
    return "\n".join(turn.content for turn in example.turns[:-1] if turn.role != "system")


def _expected(example: Example) -> str:
    return example.turns[-1].content
