"""What each event says in a line of text."""

from __future__ import annotations

from fedtune.observability import wording
from fedtune.observability.events import (
    BackdoorMeasured,
    BaselineFinished,
    ClientFailed,
    ClientTrained,
    Clustered,
    DryRound,
    Event,
    GateJudged,
    GroupDropped,
    ModelLoaded,
    Preflight,
    QuorumMissed,
    RoundFinished,
    RunFinished,
    RunStarted,
    SecurePromise,
    SecureSum,
    Sites,
)
from fedtune.observability.progress_state import ProgressState
from fedtune.observability.statistics import mean, total

__all__ = ["event_text", "printable", "round_text", "time_left"]


def event_text(event: Event, state: ProgressState) -> str:
    """Return what an event says, or nothing.

    Args:
        event: What has happened.
        state: After this event.
    """
    match event:
        case RunStarted():
            how = "starts" if event.resumed_after is None else f"goes on after round {event.resumed_after}"
            text = f"{event.name} {how}, fedtune {event.version}"
        case ModelLoaded():
            text = (
                f"model loaded in {wording.seconds(event.seconds)}: {event.name} ({event.quantization}, "
                f"{event.compute_dtype}), {wording.count(event.parameters)} parameters, "
                f"{wording.count(event.adapter_parameters)} trained"
            )
        case Sites():
            text = _sites(event)
        case ClientTrained():
            text = f"{round_text(event.round, state)}  {event.client} trained: {_training(event, state)}"
        case ClientFailed() | QuorumMissed():
            text = f"{round_text(event.round, state)}  {_failure(event)}"
        case SecurePromise():
            text = "; ".join(event.lines)
        case SecureSum():
            text = f"{round_text(event.round, state)}  {_secure(event)}"
        case Clustered():
            text = f"{round_text(event.round, state)}  {_clusters(event)}"
        case RoundFinished():
            text = _finished(event, state)
        case BaselineFinished():
            text = _baseline(event)
        case RunFinished():
            reason = f": {event.reason}" if event.reason else ""
            text = f"run {event.status} in {wording.seconds(event.seconds)}{reason}"
        case _:
            text = _rest(event, state)
    return printable(text)


def round_text(number: int, state: ProgressState) -> str:
    """Name a round: round 2/4; base for round 0."""
    if number == 0:
        return "base"
    return f"round {number}/{state.rounds}" if state.rounds else f"round {number}"


def time_left(state: ProgressState, now: float) -> str:
    """About 3 min left; nothing while it is not known."""
    left = state.seconds_left(now)
    return f"{wording.about(left)} left" if left else ""


def printable(text: str) -> str:
    """Keep control characters off the terminal: names and reasons may come from another machine."""
    return "".join(char if char.isprintable() else " " for char in text)


def _finished(event: RoundFinished, state: ProgressState) -> str:
    parts = (
        "" if event.held_out_loss is None else f"held-out loss {wording.loss(event.held_out_loss)}",
        "" if event.virtual_seconds is None else f"virtual time {wording.seconds(event.virtual_seconds)}",
        time_left(state, event.time),
    )
    what = "finished" if event.round else "evaluated"
    return ", ".join([f"{round_text(event.round, state)}  {what}", *filter(None, parts)])


def _failure(event: ClientFailed | QuorumMissed) -> str:
    if isinstance(event, ClientFailed):
        what = f"FAILED in {wording.STAGES[event.stage]}: {event.code}: {event.reason}"
        return f"{event.client} {what}"
    return f"attempt {event.attempt} of {event.attempts} lacks its quorum: {event.reason}"


def _sites(event: Sites) -> str:
    text = f"{len(event.sites)} sites"
    examples = total(site.train_examples for site in event.sites)
    if examples is not None:
        text += f", {wording.count(examples)} training examples"
    return f"{text}; {wording.count(event.skipped_rows)} bad rows skipped" if event.skipped_rows else text


def _baseline(event: BaselineFinished) -> str:
    who = "all data pooled" if event.site is None else f"{event.site} alone"
    value = wording.loss(mean(event.held_out_loss.values()))
    return f"baseline, {who}: held-out loss {value}, {wording.seconds(event.seconds)}"


def _secure(event: SecureSum) -> str:
    if not event.opened:
        return f"BURNT: {event.reason}; going on from the adapter before it"
    return f"secure sum of {len(event.clients)} sites opened in {wording.seconds(event.seconds)}"


def _clusters(event: Clustered) -> str:
    groups = "; ".join(f"{number}: {', '.join(names)}" for number, names in enumerate(event.clusters, 1))
    who = "clusters made" if event.merge_distances else f"{wording.listing(event.joined)} joined a cluster"
    return f"{who}: {groups}"


def _rest(event: Event, state: ProgressState) -> str:
    if isinstance(event, Preflight):
        answered = sum(site.code is None for site in event.sites)
        return f"{answered} of {len(event.sites)} sites have answered"
    if isinstance(event, GroupDropped):
        return f"{round_text(event.round, state)}  {event.group} gave no sum: {event.code}: {event.reason}"
    if isinstance(event, GateJudged):
        back = f"TAKEN BACK: {event.reason}; going on from the adapter of round {event.last_good_round}"
        return "" if event.passed else f"{round_text(event.round, state)}  {back}"
    if isinstance(event, BackdoorMeasured):
        share, of_base = wording.percent(event.success), wording.percent(event.success_before)
        return f"the backdoor works on {share} of {event.prompts} prompts, at the base on {of_base}"
    if isinstance(event, DryRound):
        return "the dry round is finished" if event.finished else f"no dry round: {event.reason}"
    return ""


def _training(event: ClientTrained, state: ProgressState) -> str:
    done = sum(client.status in ("trained", "evaluated", "failed") for client in state.clients.values())
    speed = state.clients[event.client].tokens_per_second
    parts = (
        None
        if event.loss_after is None
        else f"loss {wording.loss(event.loss_before)} → {wording.loss(event.loss_after)}",
        None if speed is None else f"{wording.count(speed)} tokens/s",
        f"{done} of {len(state.clients)}" if event.staleness is None else f"staleness {event.staleness}",
        time_left(state, event.time),
    )
    return ", ".join(filter(None, parts))
