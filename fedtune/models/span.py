"""Whose tokens are where in a forward pass that several adapters share."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Span"]


@dataclass(frozen=True, kw_only=True)
class Span:
    """Neighbouring tokens of a forward pass that belong to one adapter.

    Attributes:
        adapter: Which, from 0.
        begin: Index of the first token.
        tokens: How many there are.
    """

    adapter: int
    begin: int
    tokens: int
