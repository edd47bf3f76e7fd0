"""Passing things on in the order of their names, although they arrive in any order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Generic, TypeVar

__all__ = ["InOrder"]

T = TypeVar("T")


class InOrder(Generic[T]):
    """Holds what came early until everything before it has come, or will not come any more.

    A sum of floating-point numbers depends on its order. Passed on by name, it is the same whatever the
    order of arrival, and what arrives in the order of the names is never held at all. A name that is first
    expected when later ones have been passed on comes after them.

    Args:
        pass_on: Takes a name and its thing, each at most once.
    """

    def __init__(self, pass_on: Callable[[str, T], None]) -> None:
        self._waiting: list[str] = []
        self._held: dict[str, T] = {}
        self._passed: set[str] = set()
        self._pass_on = pass_on

    def expect(self, names: Iterable[str]) -> None:
        """Wait for these from now on, but for what came before, and for nothing else."""
        self._waiting = sorted({*names, *self._held} - self._passed, reverse=True)

    def arrived(self, name: str, thing: T, *, gone: Collection[str] = ()) -> None:
        """Take what came, and pass on all that nothing stands before.

        Args:
            name: One of the names that nothing came for yet.
            thing: What came.
            gone: Names for which nothing will come.
        """
        self._held[name] = thing
        while self._waiting and (self._waiting[-1] in self._held or self._waiting[-1] in gone):
            first = self._waiting.pop()
            if first in self._held:
                self._pass(first)

    def finish(self) -> None:
        """Pass on the rest: nothing more will come."""
        for name in sorted(self._held):
            self._pass(name)

    def _pass(self, name: str) -> None:
        self._passed.add(name)
        self._pass_on(name, self._held.pop(name))
