"""Where a run stands, followed from its events: what a progress display draws, without drawing anything."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from fedtune.observability.events import (
    BaselineFinished,
    ClientEvaluated,
    ClientFailed,
    ClientTrained,
    Event,
    Generated,
    RoundAggregated,
    RoundFinished,
    RoundStarted,
    RunFinished,
    RunStarted,
    Sites,
    StepProgress,
)
from fedtune.observability.statistics import mean

__all__ = ["ClientState", "ProgressState"]

_FEW = 256


@dataclass(frozen=True, kw_only=True)
class ClientState:
    """One client in the current round."""

    status: Literal["waiting", "training", "trained", "evaluated", "failed"] = "waiting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    """Training loss, of the latest step."""
    tokens_per_second: float | None = None
    held_out_loss: float | None = None
    reason: str = ""


@dataclass(kw_only=True)
class ProgressState:
    """Follows a run. Feed it every event, in order.

    Attributes:
        name: The run's.
        rounds: How many rounds there will be; None where the configuration does not say.
        round: The current one; 0 while the base is evaluated.
        phase: What is going on.
        clients: The clients of the current round, in its order.
        held_out: Mean held-out loss by round, 0 being the base.
        started: Unix seconds at which this session began; None before.
    """

    name: str = ""
    rounds: int | None = None
    round: int = 0
    phase: Literal["loading", "base", "training", "evaluating", "comparing", "sampling", "done"] = "loading"
    clients: dict[str, ClientState] = field(default_factory=dict)
    held_out: dict[int, float | None] = field(default_factory=dict)
    started: float | None = None
    _base: list[float | None] = field(default_factory=list)
    """Losses of the base so far; after the first `_FEW` sites their mean is shown when all are there."""
    _round_started: float | None = None
    _round_seconds: list[float] = field(default_factory=list)

    def observe(self, event: Event) -> None:
        """Take one event in."""
        match event:
            case RunStarted():
                self.name, self.started = event.name, event.time
                self.rounds = _configured_rounds(event.config)
                self.round = event.resumed_after or 0
            case Sites():
                self.phase = "base"
                self.clients = {site.name: ClientState() for site in event.sites}
            case RoundStarted():
                self.phase, self.round = "training", event.round
                self._round_started = event.time
                self.clients = {client: ClientState() for client in event.clients}
            case RoundAggregated():
                self.phase = "evaluating"
            case RoundFinished():
                self.held_out[event.round] = event.held_out_loss
                if self._round_started is not None:
                    self._round_seconds.append(max(0.0, event.time - self._round_started))
                self._round_started = None
            case BaselineFinished():
                self.phase = "comparing"
            case Generated():
                self.phase = "sampling"
            case RunFinished():
                self.phase = "done"
            case _:
                self._observe_client(event)

    def _observe_client(self, event: Event) -> None:
        match event:
            case StepProgress():
                self._update(
                    event.client,
                    status="training",
                    step=event.step,
                    steps=event.steps,
                    loss=event.loss,
                    tokens_per_second=event.tokens_per_second,
                )
            case ClientTrained():
                seconds = event.finished - event.started
                self._update(
                    event.client,
                    status="trained",
                    step=event.steps,
                    steps=event.steps,
                    loss=event.loss_after,
                    tokens_per_second=None
                    if event.tokens is None or seconds <= 0
                    else event.tokens / seconds,
                )
            case ClientEvaluated():
                if event.round == 0:
                    self._base.append(event.loss)
                    if len(self._base) <= _FEW:
                        self.held_out[0] = mean(self._base)
                self._update(event.client, status="evaluated", held_out_loss=event.loss)
            case ClientFailed():
                self._update(event.client, status="failed", reason=f"{event.code}: {event.reason}")
            case _:
                pass

    def _update(self, client: str, **changes: Any) -> None:
        self.clients[client] = replace(self.clients.get(client, ClientState()), **changes)

    def seconds_left(self, now: float) -> float | None:
        """Estimate the time to the last round's end; None while there is nothing to go by.

        A round is taken to last as long as the mean of those finished in this session. In the first one, what
        is trained so far stands for the whole, and its evaluation is not known yet.
        """
        if self.rounds is None or self.phase in ("comparing", "sampling", "done"):
            return None
        elapsed = now - self._round_started if self._round_started is not None else 0.0
        # Between two rounds, self.round is the one that has finished.
        left = self.rounds - self.round + (1 if self._round_started is not None else 0)
        if self._round_seconds:
            each = sum(self._round_seconds) / len(self._round_seconds)
            return max(0.0, left * each - elapsed)
        done = self.trained_share()
        if self._round_started is None or not done > 0:
            return None
        return max(0.0, left * elapsed / done - elapsed)

    def trained_share(self) -> float:
        """Return how much of the current round's training is done, between 0 and 1."""
        if not self.clients:
            return 0.0
        return sum(_share(client) for client in self.clients.values()) / len(self.clients)


def _share(client: ClientState) -> float:
    if client.status in ("trained", "evaluated", "failed"):
        return 1.0
    return client.step / client.steps if client.steps else 0.0


def _configured_rounds(config: dict[str, Any]) -> int | None:
    federation = config.get("federation")
    rounds = federation.get("rounds") if isinstance(federation, dict) else None
    return rounds if isinstance(rounds, int) else None
