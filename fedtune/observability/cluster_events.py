"""The event of clusters: which sites train one adapter together."""

from __future__ import annotations

from typing import ClassVar

from pydantic.dataclasses import dataclass

from fedtune.observability.event_base import STRICT, Count, Event, Measured, Positive

__all__ = ["Clustered"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Clustered(Event):
    """Sites were grouped by their updates of a round, or some joined the clusters that there are."""

    name_on_disk: ClassVar[str] = "clustered"

    round: Count
    clusters: tuple[tuple[str, ...], ...]
    """The members of each, from the first on."""
    joined: tuple[str, ...]
    """Who was in none before."""
    similarity_within: Measured
    """Mean cosine between two sites of one cluster, of what sets their updates apart from all; null without
    such a pair, and where the clusters were there already."""
    similarity_between: Measured
    """The same of two sites of different clusters."""
    merge_distances: tuple[Positive, ...]
    """Mean cosine distance at which two clusters would become one, three become two, and so on."""
