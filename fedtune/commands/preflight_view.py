"""A preflight for a person: a table of the sites, the dry round, and what to do."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedtune.commands.preflight_advice import Readiness, skewed
from fedtune.observability import wording
from fedtune.observability.events import DryRound, Preflight, SiteReadiness
from fedtune.observability.progress_lines import printable

__all__ = ["print_preflight"]

_VERSIONS = {"version": "fedtune", "flwr": "flwr", "python": "py", "torch": "torch"}


def print_preflight(
    found: Readiness,
    asked: Preflight,
    tried: DryRound | None,
    *,
    named: bool,
    console: Console | None = None,
) -> None:
    """Print what a preflight found.

    Args:
        found: What it means.
        asked: Every site's answer.
        tried: How the dry round went; None if there was none to be.
        named: Whether the run was given a name, under which it can be approved.
        console: Where to; standard error by default, so that standard output stays for machines.
    """
    console = console or Console(stderr=True, highlight=False)
    console.print(_table(found, asked, tried))
    if tried is not None and tried.finished:
        up, down = wording.bytes_(tried.uplink_bytes), wording.bytes_(tried.downlink_bytes)
        console.print(f"\ndry round: {wording.seconds(tried.seconds)}, {up} from the sites, {down} to them")
    for each in found.advice:
        mark = Text("  !  ", style="bold red") if each.blocks else Text("  -  ", style="yellow")
        who = "the federation" if each.site is None else each.site
        console.print(
            Text.assemble(mark, (printable(who), "bold"), f": {printable(each.text)}"), soft_wrap=True
        )
    if not named:
        text = "without name=… in the command no site can approve the run before it begins"
        console.print(Text.assemble(Text("  -  ", style="yellow"), text), soft_wrap=True)
    ready = len(asked.sites) - len(found.blocked)
    console.print(f"\n{ready} of {len(asked.sites)} sites are ready for {printable(asked.run)}")


def _table(found: Readiness, asked: Preflight, tried: DryRound | None) -> Table:
    here = ", ".join(f"{label} {getattr(asked, field)}" for field, label in _VERSIONS.items())
    table = Table(
        title=f"{printable(asked.run)}; here: {here}", title_justify="left", box=None, pad_edge=False
    )
    for column in ("site", "ready", "connected", "versions", "policy", "approval", "checks", "dry round"):
        table.add_column(column, overflow="fold")
    dry = _dry_cells(tried)
    for site in asked.sites:
        ready = site.name not in found.blocked
        table.add_row(
            Text(printable(site.name), style="bold"),
            Text("yes" if ready else "NO", style="green" if ready else "bold red"),
            "yes" if site.connected else "no",
            *(Text(printable(cell)) for cell in _cells(site, asked)),
            dry.get(site.name, "-"),
        )
    return table


def _cells(site: SiteReadiness, asked: Preflight) -> tuple[str, str, str, str]:
    """Versions, policy, approval and checks of a site."""
    if site.code is not None:
        return "-", f"{site.code}", "-", "-"
    refused = tuple(dict.fromkeys((*site.train_refused, *site.evaluate_refused)))
    return (
        _versions(site, asked),
        f"refuses: {', '.join(refused)}" if refused else "accepts",
        site.approval or "-",
        _checks(site),
    )


def _versions(site: SiteReadiness, asked: Preflight) -> str:
    """The fedtune of a site, and every version that is another than the coordinator's, with a star."""
    others = skewed(site, asked)
    marked = [f"{_VERSIONS[field]} {getattr(site, field)}*" for field in others]
    return ", ".join(marked) or f"fedtune {site.version}, all as here"


def _checks(site: SiteReadiness) -> str:
    failed, noted = (
        [
            f"{check.name} {check.code}" if check.code else check.name
            for check in site.checks
            if check.status == status
        ]
        for status in ("failed", "warning")
    )
    parts = [f"FAILED: {', '.join(failed)}" if failed else "", f"noted: {', '.join(noted)}" if noted else ""]
    said = "; ".join(part for part in parts if part) or "ok"
    if site.checks_age_seconds is not None and site.checks_age_seconds >= 1.0:
        said += f" ({wording.seconds(site.checks_age_seconds)} old)"
    return said


def _dry_cells(tried: DryRound | None) -> dict[str, Text]:
    if tried is None:
        return {}
    cells = {}
    for site in tried.sites:
        if site.code is not None:
            cells[site.name] = Text(f"FAILED {printable(site.code)}", style="bold red")
        elif site.seconds is None:
            cells[site.name] = Text("-")
        else:
            cells[site.name] = Text(f"ok, {wording.seconds(site.seconds)}", style="green")
    return cells
