"""report.html: a run on one page that opens offline and can be handed on, drawn from rounds.jsonl alone.

Guarantees:

* The same events give the same bytes.
* Nothing is fetched and no script runs: there is none, and the page's own Content-Security-Policy forbids
  both, so that a site name or a generated text can do nothing, whatever it holds.
* All text is escaped by its type; see markup.py.
* Every picture has its numbers in a table.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TypeVar

from fedtune.observability.disk import write_atomic
from fedtune.observability.events import (
    Event,
    Generated,
    ModelLoaded,
    RunStarted,
    Sites,
    effective_events,
    read_events,
)
from fedtune.observability.markup import Markup, el, join
from fedtune.observability.report.clusters import clusters
from fedtune.observability.report.comparison import comparison, head, key_figures
from fedtune.observability.report.cost import cost, failures
from fedtune.observability.report.learning import curves, data
from fedtune.observability.report.record import reading, record, samples
from fedtune.observability.summary import summarise
from fedtune.observability.verdict import verdict

__all__ = ["render_report", "write_report"]

E = TypeVar("E", bound=Event)


def write_report(events: Path | Iterable[Event], path: Path) -> Path:
    """Write the report of a run, finished or not, and return its path.

    Args:
        events: The event log, or its events.
        path: The HTML file; replaced atomically.

    Raises:
        RunError: FT703, FT704, FT706 or FT707 if the log cannot be read; FT705 or FT707 if the report cannot
            be written.
    """
    recorded = read_events(events) if isinstance(events, Path) else events
    write_atomic(path, render_report(recorded).encode())
    return path


def render_report(events: Iterable[Event]) -> str:
    """Return the page.

    Args:
        events: All events of a log, voided ones included.
    """
    recorded = list(events)
    kept = effective_events(recorded)
    summary = summarise(recorded)
    answer = verdict(summary)
    sites = _last(kept, Sites)
    body = (
        head(summary, answer),
        key_figures(summary),
        comparison(summary),
        clusters(summary),
        failures(summary),
        curves(summary),
        data(sites, summary["skipped_rows"]),
        samples([event for event in kept if isinstance(event, Generated)]),
        cost(summary),
        record(_last(kept, RunStarted), _last(kept, ModelLoaded), summary["sessions"]),
        reading(),
    )
    return _page(f"{answer.headline} {summary['name'] or ''} · fedtune", body, _footer(recorded))


def _last(events: Iterable[Event], kind: type[E]) -> E | None:
    found = [event for event in events if isinstance(event, kind)]
    return found[-1] if found else None


def _footer(recorded: list[Event]) -> Markup:
    if not recorded:
        return el("footer", el("p", "Drawn by fedtune from a log without events."))
    until = datetime.fromtimestamp(recorded[-1].time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return el("footer", el("p", f"Drawn by fedtune from the run's rounds.jsonl, as it stood on {until}."))


def _page(title: str, body: Iterable[Markup | None], footer: Markup) -> str:
    style = resources.files("fedtune.observability.report").joinpath("style.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    page = el(
        "html",
        el(
            "head",
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=policy),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("meta", name="referrer", content="no-referrer"),
            el("title", title),
            el("link", rel="icon", href="data:,"),
            Markup(f"<style>{style}</style>"),  # our own file, not text of the run
        ),
        el("body", el("main", join(body)), footer),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"
