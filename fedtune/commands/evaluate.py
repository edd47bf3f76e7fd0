"""``fedtune evaluate RUN``: the held-out loss at every site, of the base, of the run's adapter, and of the
sites' own models where a simulation has them.
"""

from __future__ import annotations

import argparse
from typing import Any

from fedtune.commands.reporting import print_json, say
from fedtune.commands.runs import OpenRun, open_run

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print a table, or one JSON object.

    Returns:
        0.
    """
    opened = open_run(arguments.run)
    sites = _losses(opened)
    before, after, own = (_mean(sites, kind) for kind in ("base", "federated", "personalised"))
    if arguments.json:
        means = {"base": before, "federated": after, "personalised": own}
        print_json({"run": str(opened.path), "sites": sites, "held_out_loss": means})
        return 0
    _print_table(sites)
    if before is not None and after is not None:
        theirs = "" if own is None else f", {own:.4f} with the sites' own models"
        say(
            f"mean over sites: {before:.4f} before, {after:.4f} after the federation{theirs} (nats per token)"
        )
    return 0


def _losses(opened: OpenRun) -> dict[str, dict[str, Any]]:
    from safetensors.numpy import load_file  # noqa: PLC0415

    from fedtune.evaluation.loss import held_out_loss  # noqa: PLC0415
    from fedtune.export.adapter import WEIGHTS_FILE  # noqa: PLC0415
    from fedtune.federation.own_factors import personal_folder  # noqa: PLC0415
    from fedtune.models.adapter import initial_adapter, rank_of  # noqa: PLC0415
    from fedtune.models.hardware import set_threads  # noqa: PLC0415
    from fedtune.simulation.sites import load_sites  # noqa: PLC0415

    adapter = opened.adapter()
    sites = load_sites(opened.config)
    set_threads(opened.config.training.threads)
    model = opened.model(rank=rank_of(adapter))
    budget = opened.config.evaluation.microbatch_tokens
    found: dict[str, dict[str, Any]] = {}
    for kind, weights in (("base", initial_adapter(model.spec, opened.config.seed)), ("federated", adapter)):
        model.load_adapter(weights)
        for site in (sites.site(index) for index in range(len(sites))):
            row = found.setdefault(site.name, {"examples": len(site.held_out), "tokens": 0, "base": None})
            row |= {key: row.get(key) for key in ("federated", "personalised")}
            if site.held_out:
                measured = held_out_loss(model, site.held_out, microbatch_tokens=budget)
                row |= {"tokens": measured.tokens, kind: measured.loss}
    for site in (sites.site(index) for index in range(len(sites))):
        own = personal_folder(opened.path, site.name) / WEIGHTS_FILE
        if site.held_out and own.exists():
            model.load_adapter(load_file(own))
            measured = held_out_loss(model, site.held_out, microbatch_tokens=budget)
            found[site.name]["personalised"] = measured.loss
    return found


def _mean(sites: dict[str, dict[str, Any]], kind: str) -> float | None:
    losses = [row[kind] for row in sites.values() if row[kind] is not None]
    return sum(losses) / len(losses) if losses else None


def _print_table(sites: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    kinds = {"base": "loss before", "federated": "loss after"}
    if any(row["personalised"] is not None for row in sites.values()):
        kinds["personalised"] = "loss of the site's own model"
    table = Table("site", "held-out rows", "tokens", *kinds.values())
    for name, row in sites.items():
        losses = ["" if row[kind] is None else f"{row[kind]:.4f}" for kind in kinds]
        table.add_row(Text(name), str(row["examples"]), str(row["tokens"]), *losses)
    Console(stderr=True).print(table)
