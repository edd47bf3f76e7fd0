"""Several sums of one round, over groups of members that share nobody, carried together.

Every group runs the protocol by itself: its own cohort, keys, threshold and attempts. Only the transport is
shared, so that a round takes as long as its slowest group and not as all of them one after another. What
happens in one group changes nothing in another.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from fedtune.errors import FedtuneError, SecureAggregationError
from fedtune.secagg.messages import Kind, Signed, open_frame
from fedtune.secagg.problems import refusal
from fedtune.secagg.roster import Roster
from fedtune.secagg.rounds import RoundOutcome, Send, Trips

__all__ = ["require_groups", "together"]

Ended = RoundOutcome | SecureAggregationError


def require_groups(roster: Roster, count: int) -> None:
    """Refuse a run whose groups are not those of the roster.

    Args:
        roster: The version in force when the run begins.
        count: ``secagg.groups``; 1 takes any roster.

    Raises:
        SecureAggregationError: FT931.
    """
    if count > 1 and len(roster.groups) != count:
        what = f"secagg.groups is {count}, and the sites of the roster have {len(roster.groups)} groups"
        raise refusal("FT931", what, where=f"roster version {roster.version}")


def together(groups: Mapping[str, Trips[RoundOutcome]], send: Send) -> dict[str, Ended]:
    """Carry the trips of all groups, those of one kind at a time, until each group has ended.

    Args:
        groups: Name to trips, from `fedtune.secagg.rounds.round_trips`; no member is in two of them.
        send: The transport. It gets requests of one kind at a time.

    Returns:
        Name to the group's sum, or to why it has none: FT920, nothing was opened; FT921, it is burnt.

    Raises:
        SecureAggregationError: FT926, a journal cannot be written.
    """
    ended: dict[str, Ended] = {}
    asked: dict[str, Mapping[bytes, bytes]] = {}

    def go_on(name: str, replies: Iterable[bytes] | None) -> None:
        asked.pop(name, None)
        try:
            asked[name] = next(groups[name]) if replies is None else groups[name].send(replies)
        except StopIteration as done:
            ended[name] = done.value
        except SecureAggregationError as error:
            if error.problems[0].code not in ("FT920", "FT921"):
                raise  # nothing of this group's: the disk is full, for one
            ended[name] = error

    for name in groups:
        go_on(name, None)
    while asked:
        kind = min(_kind(requests) for requests in asked.values())
        batch = {name: requests for name, requests in asked.items() if _kind(requests) == kind}
        replies = _by_sender(send({key: frame for each in batch.values() for key, frame in each.items()}))
        for name, requests in batch.items():
            go_on(name, [reply for member in requests for reply in replies.get(member, ())])
    return {name: ended[name] for name in groups}


def _kind(requests: Mapping[bytes, bytes]) -> int:
    """Return the kind of a trip's requests; a trip that asks nobody comes first."""
    return int(open_frame(next(iter(requests.values())))[0]) if requests else int(min(Kind))


def _by_sender(replies: Iterable[bytes]) -> dict[bytes, list[bytes]]:
    """Return the replies that claim to be of each member; which one is, the member's group finds out."""
    found: dict[bytes, list[bytes]] = {}
    for reply in replies:
        try:
            found.setdefault(Signed.read(reply).sender, []).append(reply)
        except FedtuneError:
            continue
    return found
