"""Rows to microbatches: how the tokens of one optimizer step are laid out for the model.

Legend of shapes:
    B  sequences in a microbatch (1 when packed)
    T  tokens of a sequence
    P  predictions: the tokens that are targets of the loss

A row's input ends before its last target: what comes after predicts nothing that counts, so it is never
computed. Two layouts:

*Packed.* Rows stand end to end in one sequence, each with positions of its own, and attention is
block-diagonal: no padding is computed. Where the model allows it, the tokens with which all rows of a
microbatch begin (a system prompt, an instruction) are computed once and seen by every row::

    tokens     <sys> <sys> a a a b b c c c c        segments   0 0 1 1 1 2 2 3 3 3 3
    positions    0     1   2 3 4 2 3 2 3 4 5        0 is seen by all, the others by themselves

This is the same function of the weights, because a causal model's state at a token depends on the tokens
before it alone. Only LoRA dropout sees the shared tokens once instead of once for each row.

*Padded.* Rows of like length side by side, filled up to the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fedtune.data.tokenize import TokenizedExample

__all__ = ["Microbatch", "lay_out", "pack", "pad"]

Ints: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]
Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Microbatch:
    """Input of one forward pass, and what it shall predict.

    Attributes:
        token_ids: (B, T) input tokens.
        position_ids: (B, T) position of each token within its row.
        segments: (T,) for packed rows: 0 for tokens that every row sees, then 1, 2, … for the rows' own.
            None for one row alone, and for padded rows.
        attention_mask: (B, T) for padded rows: False at padding. None where nothing is padded.
        target_places: (P,) indices into the flattened (B * T) tokens whose state predicts a target; a shared
            place may come several times.
        target_ids: (P,) the tokens to predict there.
        rows: Indices of the rows in it, in order.
        tokens: Tokens computed, without padding.
    """

    token_ids: Ints
    position_ids: Ints
    segments: Ints | None
    attention_mask: Bools | None
    target_places: Ints
    target_ids: Ints
    rows: tuple[int, ...]
    tokens: int

    def visible(self) -> Bools | None:
        """Which token sees which: (T, T), [query, key], for packed rows; None without segments."""
        if self.segments is None:
            return None
        own = self.segments[:, None] == self.segments[None, :]
        shared = self.segments[None, :] == 0
        earlier = np.tri(len(self.segments), dtype=np.bool_)
        visible: Bools = (own | shared) & earlier
        return visible


def lay_out(
    rows: Sequence[TokenizedExample], *, microbatch_tokens: int, packing: bool, share_prefix: bool
) -> tuple[Microbatch, ...]:
    """`pack` or `pad` rows."""
    if packing:
        return pack(rows, microbatch_tokens=microbatch_tokens, share_prefix=share_prefix)
    return pad(rows, microbatch_tokens=microbatch_tokens)


def pack(
    rows: Sequence[TokenizedExample], *, microbatch_tokens: int, share_prefix: bool
) -> tuple[Microbatch, ...]:
    """Pack rows into sequences of at most ``microbatch_tokens`` tokens, by first-fit decreasing.

    Guarantees:
        * Every row is in exactly one microbatch; a row without targets is in none.
        * No microbatch is longer than ``microbatch_tokens``, unless it is one row that is longer itself.
        * The same rows give the same microbatches (equal lengths keep their order).

    Args:
        rows: Rows of one optimizer step, or of an evaluation.
        microbatch_tokens: Most tokens in one forward pass.
        share_prefix: Compute the tokens with which all rows begin once for each microbatch. Right only for
            attention that `Microbatch.visible` describes fully.

    Returns:
        Microbatches with B = 1, the one with the longest row first.
    """
    lengths = _input_lengths(rows)
    used = [row for row in range(len(rows)) if lengths[row]]
    prefix = _common_prefix([rows[row].token_ids[: lengths[row]] for row in used]) if share_prefix else 0
    bins: list[list[int]] = []
    room: list[int] = []
    for row in sorted(used, key=lambda row: -lengths[row]):
        own = lengths[row] - prefix
        place = next((i for i, free in enumerate(room) if free >= own), None)
        if place is None:
            bins.append([row])
            room.append(microbatch_tokens - prefix - own)
        else:
            bins[place].append(row)
            room[place] -= own
    return tuple(_packed(rows, members, lengths, prefix) for members in bins)


def pad(rows: Sequence[TokenizedExample], *, microbatch_tokens: int) -> tuple[Microbatch, ...]:
    """Group rows of like length and fill each group up to its longest row.

    Guarantees: as of `pack`, where padding counts as tokens of the microbatch.

    Args:
        rows: Rows of one optimizer step, or of an evaluation.
        microbatch_tokens: Most tokens in one forward pass, padding included.

    Returns:
        Microbatches in order of falling length.
    """
    lengths = _input_lengths(rows)
    groups: list[list[int]] = []
    for row in sorted((row for row in range(len(rows)) if lengths[row]), key=lambda row: -lengths[row]):
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= microbatch_tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return tuple(_padded(rows, members, lengths) for members in groups)


def _input_lengths(rows: Sequence[TokenizedExample]) -> list[int]:
    """Input tokens of each row: all before its last target, 0 for a row without targets."""
    predicted = [np.flatnonzero(row.loss_mask[1:]) for row in rows]
    return [int(places[-1]) + 1 if len(places) else 0 for places in predicted]


def _common_prefix(inputs: Sequence[np.ndarray[Any, Any]]) -> int:
    """Number of tokens that all inputs begin with; 0 for a single input, which shares with nobody."""
    if len(inputs) < 2:
        return 0
    shortest = min(len(tokens) for tokens in inputs)
    alike = np.all([tokens[:shortest] == inputs[0][:shortest] for tokens in inputs], axis=0)
    return shortest if alike.all() else int(np.argmin(alike))


def _packed(
    rows: Sequence[TokenizedExample], members: Sequence[int], lengths: Sequence[int], prefix: int
) -> Microbatch:
    if len(members) == 1:
        prefix = 0  # nothing to share: an ordinary sequence, which needs no mask of ours
    first = rows[members[0]].token_ids
    tokens, positions, segments = [first[:prefix]], [np.arange(prefix)], [np.zeros(prefix, np.int64)]
    places, targets = [], []
    begin = prefix
    for segment, row in enumerate(members, start=1):
        length = lengths[row]
        tokens.append(rows[row].token_ids[prefix:length])
        positions.append(np.arange(prefix, length))
        segments.append(np.full(length - prefix, segment))
        predicted = rows[row].loss_mask[1:]  # the first token has nothing before it to predict it from
        places_in_row = np.flatnonzero(predicted)
        # A place within the shared tokens stays where it is; the others move with the row.
        places.append(np.where(places_in_row < prefix, places_in_row, places_in_row - prefix + begin))
        targets.append(rows[row].token_ids[1:][predicted])
        begin += length - prefix
    return Microbatch(
        token_ids=np.concatenate(tokens).astype(np.int64)[None],
        position_ids=np.concatenate(positions).astype(np.int64)[None],
        segments=np.concatenate(segments).astype(np.int64) if len(members) > 1 else None,
        attention_mask=None,
        target_places=np.concatenate(places).astype(np.int64),
        target_ids=np.concatenate(targets).astype(np.int64),
        rows=tuple(members),
        tokens=begin,
    )


def _padded(rows: Sequence[TokenizedExample], members: Sequence[int], lengths: Sequence[int]) -> Microbatch:
    width = lengths[members[0]]
    token_ids = np.zeros((len(members), width), np.int64)
    attention_mask = np.zeros((len(members), width), np.bool_)
    places, targets = [], []
    for line, row in enumerate(members):
        token_ids[line, : lengths[row]] = rows[row].token_ids[: lengths[row]]
        attention_mask[line, : lengths[row]] = True
        predicted = rows[row].loss_mask[1:]
        places.append(np.flatnonzero(predicted) + line * width)
        targets.append(rows[row].token_ids[1:][predicted])
    return Microbatch(
        token_ids=token_ids,
        position_ids=np.broadcast_to(np.arange(width), token_ids.shape).copy(),
        segments=None,
        attention_mask=None if attention_mask.all() else attention_mask,
        target_places=np.concatenate(places).astype(np.int64),
        target_ids=np.concatenate(targets).astype(np.int64),
        rows=tuple(members),
        tokens=int(attention_mask.sum()),
    )
