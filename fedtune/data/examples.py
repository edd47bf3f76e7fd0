"""What a row of any dataset becomes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["Example", "Role", "Turn"]

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, kw_only=True)
class Example:
    """One row of a dataset: a conversation that ends with the response to learn, or plain text.

    Attributes:
        id: Unique in its dataset.
        turns: The conversation; the last turn is the assistant's and is the response that the loss sees.
            Empty for plain text.
        text: Plain text, whose every token the loss sees; None for a conversation.
        columns: The row's other columns as strings: labels to partition by, such as ``site``.
        input: The ``input`` of an Alpaca row, which also ends the user turn's content after a blank line;
            the Alpaca template gives it a section of its own. None for every other row.

    Raises:
        ValueError: It holds neither turns nor text, or both, or does not end with the assistant.
    """

    id: str
    turns: tuple[Turn, ...] = ()
    text: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    input: str | None = None

    def __post_init__(self) -> None:
        if (self.text is None) == (not self.turns):
            raise ValueError(f"example {self.id!r} must hold either turns or text")
        if self.turns and self.turns[-1].role != "assistant":
            raise ValueError(f"example {self.id!r} must end with an assistant turn")

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns before the response; empty for plain text."""
        return self.turns[:-1]

    @property
    def response(self) -> str:
        """What the model has to learn to say: the last assistant turn, or the whole plain text."""
        return self.turns[-1].content if self.text is None else self.text
