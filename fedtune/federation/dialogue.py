"""Asking sites and waiting: whoever does not answer as asked is named, and nobody is waited for for ever."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedtune.errors import FederationError, Problem, UpdateError
from fedtune.federation.patience import bounded_pulls
from fedtune.federation.wire import (
    Body,
    EvaluateReply,
    Failure,
    HelloReply,
    PreflightReply,
    TrainReply,
    content,
    parse_reply,
)
from fedtune.observability.events import ClientFailed, Event

__all__ = ["MESSAGE_TYPES", "Dialogue", "Stage", "flower_failure", "reply_of"]

Stage = Literal["hello", "train", "secagg", "evaluate", "preflight"]
MESSAGE_TYPES: Mapping[Stage, str] = {
    "hello": "query.hello",
    "train": "train",
    "secagg": "query.secagg",
    "evaluate": "evaluate",
    "preflight": "query.preflight",
}

Reply = TypeVar("Reply", HelloReply, TrainReply, EvaluateReply, PreflightReply)


@dataclass(kw_only=True)
class Dialogue:
    """The server's end of the conversation with all sites.

    Guarantees:
        * A reply counts once: a second one to the same question is dropped.
        * Each site that was asked either has its reply accepted or is recorded as failed, with a reason.

    Attributes:
        grid: Flower's way to the clients.
        timeout_seconds: How long to wait for the replies to one question.
        record: Where events go.
        nodes: Flower's node of each site, by name, as far as they are known.
        failures: Everyone who failed so far.
    """

    grid: Grid
    timeout_seconds: float
    record: Callable[[Event], None]
    nodes: dict[str, int] = field(default_factory=dict)
    failures: list[ClientFailed] = field(default_factory=list)
    _told: set[tuple[Stage, str, str, int | None]] = field(default_factory=set, init=False)

    def ask(
        self,
        stage: Stage,
        round_number: int,
        body: Body,
        *,
        to: Iterable[str],
        expect: type[Reply],
        arrays: ArrayRecord | Callable[[str], ArrayRecord] | None = None,
        accept: Callable[[str, Reply, Message], None] | None = None,
    ) -> dict[str, Reply]:
        """Ask sites one thing and return the acceptable replies, by name, in order of arrival.

        Args:
            stage: What it is about, for the record.
            round_number: Round, 0 before the first.
            body: The request.
            to: Names of the sites.
            expect: Type of the reply.
            arrays: Adapter that goes with the request, or what gives that of a site by its name.
            accept: Looks at a reply and its message; an `UpdateError` from it makes the site a failed one.
        """
        good = dict[str, Reply]()

        def take(name: str, message: Message) -> None:
            reply = reply_of(message, expect)
            if isinstance(reply, Failure):
                self.fail(stage, round_number, name, reply.code, reply.reason)
                return
            if accept is not None:
                accept(name, reply, message)
            good[name] = reply

        if callable(arrays):
            contents = {name: content(body, arrays(name)) for name in to}
        else:
            contents = dict.fromkeys(to, content(body, arrays))
        self.exchange(stage, round_number, contents, take)
        return good

    def exchange(
        self,
        stage: Stage,
        round_number: int,
        contents: Mapping[str, RecordDict],
        take: Callable[[str, Message], None],
        *,
        timeout_seconds: float | None = None,
        nodes: Mapping[str, int] | None = None,
    ) -> None:
        """Send each site its own content and look at each reply as it arrives.

        Args:
            stage: What it is about, for the record.
            round_number: Round, 0 before the first.
            contents: What to send, by name of the site.
            take: Looks at a site's reply; an `UpdateError` from it makes the site a failed one.
            timeout_seconds: How long to wait; None takes the dialogue's own.
            nodes: Flower's node of each, where they are not among the dialogue's own.
        """
        if not contents:
            return
        timeout = self.timeout_seconds if timeout_seconds is None else timeout_seconds
        silent = {(nodes or self.nodes)[name]: name for name in contents}
        messages = [Message(contents[name], node, MESSAGE_TYPES[stage]) for node, name in silent.items()]
        with bounded_pulls(timeout):
            for message in self.grid.send_and_receive(messages, timeout=timeout):
                node = message.metadata.src_node_id
                if node not in silent:  # the SuperLink itself says that a node is away
                    asked = {each.metadata.message_id: each.metadata.dst_node_id for each in messages}
                    node = asked.get(message.metadata.reply_to_message_id, node)
                name = silent.pop(node, None)
                if name is None:
                    continue
                try:
                    take(name, message)
                except UpdateError as error:
                    self.fail(stage, round_number, name, error.problems[0].code, error.problems[0].what)
        for name in silent.values():
            self.fail(stage, round_number, name, "FT606", f"no reply within {timeout:g} s")

    def fail(self, stage: Stage, round_number: int, name: str, code: str, reason: str) -> None:
        """Record that a site failed, and why.

        Who cannot be greeted for one reason is recorded once, and who is away from a round once in it.
        """
        failure = ClientFailed(round=round_number, client=name, stage=stage, code=code, reason=reason)
        of_round = None if stage == "hello" else round_number
        this = (stage, name, code, of_round)
        repeated = (stage == "hello" or code == "FT612") and this in self._told
        self._told.add(this)
        self.failures.append(failure)
        if not repeated:
            self.record(failure)

    def require(self, round_number: int, usable: Collection[str], wanted: int) -> None:
        """Stop where fewer sites are usable than the round's contract demands.

        Args:
            round_number: Round, 0 before the first.
            usable: Names of those who are.
            wanted: How many the contract demands.

        Raises:
            FederationError: FT607, with everyone else who failed in this round, each for its last reason.
        """
        if len(usable) >= wanted:
            return
        failed = {
            event.client: f"{event.client} at {event.stage} ({event.code}: {event.reason})"
            for event in self.failures
            if event.round == round_number and event.client not in usable
        }
        raise FederationError(
            Problem(
                code="FT607",
                what=f"{len(usable)} usable replies where {wanted} are required; "
                f"failed: {'; '.join(failed.values()) or 'nobody'}",
                where=f"round {round_number}, federation.min_replies",
                fix="mend the named sites and run again with resume=true, or lower federation.min_replies",
            )
        )


def flower_failure(message: Message) -> Failure | None:
    """Return the error that Flower itself sent instead of a reply, if it did."""
    if not message.has_error():
        return None
    reason = message.error.reason or "Flower gave no reason"
    return Failure(site="?", code="FT605", reason=reason[:4_000])


def reply_of(message: Message, expect: type[Reply]) -> Reply | Failure:
    """Return what a site says, or why it, or Flower for it, does not.

    Raises:
        UpdateError: FT520, it is neither.
    """
    failure = flower_failure(message)
    return parse_reply(message, expect) if failure is None else failure
