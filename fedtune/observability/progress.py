"""What a person sees while a run goes on: a live table on a terminal, plain lines anywhere else.

Both are drawn from events alone, on standard error. What matters later (a round's result, a failure with its
reason) is a line in both, so that it stays in the terminal's history.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedtune.observability import wording
from fedtune.observability.events import (
    ClientTrained,
    Event,
    Observer,
)
from fedtune.observability.progress_lines import event_text, printable, round_text, time_left
from fedtune.observability.progress_state import ClientState, ProgressState

__all__ = ["progress"]

_MOST_CLIENTS = 16
_MOST_FAILED = 64
_STATUS = {"waiting": "dim", "training": "cyan", "trained": "", "evaluated": "green", "failed": "bold red"}
_PHASES = {
    "loading": "loading",
    "base": "evaluating the base",
    "training": "training",
    "evaluating": "evaluating",
    "comparing": "training baselines",
    "sampling": "generating samples",
    "done": "done",
}


@contextlib.contextmanager
def progress(console: Console | None = None) -> Iterator[Observer]:
    """Show a run while it goes on.

    Args:
        console: Where to; standard error by default. On a terminal that can move its cursor the display is
            live, elsewhere there is one line for each client trained and each round finished.

    Yields:
        The observer to give every event to. It may be called from any thread.
    """
    console = console or _Console(stderr=True)
    display = _Display(console)
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, get_renderable=display.render, refresh_per_second=4, transient=True):
            yield display.observe_live
    else:
        yield display.observe_plain


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let the display go on without its reader; rich would end the process and take stdout with it."""
        raise BrokenPipeError


class _Display:
    def __init__(self, console: Console) -> None:
        self._console = console
        self._state = ProgressState()
        self._lock = threading.Lock()  # the live display draws from a thread of its own

    def observe_plain(self, event: Event) -> None:
        self._observe(event, live=False)

    def observe_live(self, event: Event) -> None:
        self._observe(event, live=True)

    def _observe(self, event: Event, *, live: bool) -> None:
        with self._lock:
            self._state.observe(event)
            # The live table shows a trained client by itself.
            line = "" if live and isinstance(event, ClientTrained) else event_text(event, self._state)
        # A closed terminal or a full disk behind a redirection must not end hours of training.
        with contextlib.suppress(OSError):
            if line:
                self._console.print(Text(line), soft_wrap=True)

    def render(self) -> RenderableType:
        with self._lock:
            return _table(self._state, time.time())


def _table(state: ProgressState, now: float) -> RenderableType:
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(printable(state.name) or "fedtune", style="bold")
    head.append(f"  {round_text(state.round, state)}" if state.round else "")
    head.append(f"  {_PHASES[state.phase]}", style="cyan")
    if state.started is not None:
        head.append(f"  {wording.seconds(max(0.0, now - state.started))}", style="dim")
    head.append(f"  {time_left(state, now)}", style="dim")
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("site", no_wrap=True, max_width=36)
    table.add_column("state", no_wrap=True, max_width=60)
    table.add_column("steps", no_wrap=True)
    for heading in ("loss", "tokens/s", "held-out"):
        table.add_column(heading, justify="right", no_wrap=True)
    shown = _shown(state.clients)
    for name, client in shown.items():
        _add_row(table, name, client)
    parts: list[RenderableType] = [head, table]
    hidden = len(state.clients) - len(shown)
    if hidden:
        parts.append(Text(f"and {hidden} more", style="dim"))
    if state.held_out:
        losses = "  ".join(
            f"{round_ or 'base'} {wording.loss(value)}"
            for round_, value in sorted(state.held_out.items())[-10:]
        )
        parts.append(Text(f"held-out loss by round  {losses}", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _add_row(table: Table, name: str, client: ClientState) -> None:
    failed = client.status == "failed"
    done = ProgressBar(
        total=max(1, client.steps),
        completed=client.step,
        width=12,
        complete_style="cyan",
        finished_style="green",
    )
    table.add_row(
        Text(printable(name), overflow="ellipsis"),
        Text(printable(client.reason) if failed else client.status, style=_STATUS[client.status]),
        done if client.steps else Text(""),
        wording.loss(client.loss) if client.loss is not None else "",
        wording.count(client.tokens_per_second) if client.tokens_per_second is not None else "",
        wording.loss(client.held_out_loss) if client.held_out_loss is not None else "",
    )


def _shown(clients: dict[str, ClientState]) -> dict[str, ClientState]:
    """Return the clients to show, in their order: those that failed, those at work, then others."""
    if len(clients) <= _MOST_CLIENTS:
        return clients
    rank = {"failed": 0, "training": 1, "trained": 2, "evaluated": 3, "waiting": 4}
    first = sorted(clients, key=lambda name: rank[clients[name].status])
    failed = sum(client.status == "failed" for client in clients.values())
    chosen = set(first[: min(max(_MOST_CLIENTS, failed), _MOST_FAILED)])
    return {name: client for name, client in clients.items() if name in chosen}
