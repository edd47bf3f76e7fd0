"""What a site insists on, whatever the server asks: held locally, read from the site's own policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedtune.errors import SecureAggregationError
from fedtune.secagg.masks import PRGS, Prg
from fedtune.secagg.problems import problem

__all__ = ["K_MIN_FLOOR", "Policy"]

K_MIN_FLOOR: Final = 3


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A site's own conditions for taking part in a secure sum.

    Attributes:
        k_min: Smallest cohort; never below 3.
        max_colluders: Members that may work together with an active server, c; a cohort of n is refused
            unless c < 2T − n, and a sum unless it holds at least two members beyond c.
        corrupt_fraction: Above 128 members: share of the cohort assumed to collude with the server when
            the sparse graph is built. The same at all members.
        drop_fraction: Above 128 members: share of the cohort that may drop out after the shares are dealt.
        attempt_seconds: Lifetime of an attempt's keys, from the advert on.
        hold_seconds: Lifetime of an encoded update that was not opened, from its encoding on.
        groups: Refuse a sum that holds some but not all members of one of the roster's groups.
        prg: Stream cipher of the masks, the same at all members; ``chacha20`` where machines lack AES.

    Raises:
        SecureAggregationError: FT925, every impossible value at once.
    """

    k_min: int = 5
    max_colluders: int = 0
    corrupt_fraction: float = 0.2
    drop_fraction: float = 0.1
    attempt_seconds: float = 900.0
    hold_seconds: float = 3600.0
    groups: bool = False
    prg: Prg = "aes256ctr"

    def __post_init__(self) -> None:
        problems = []
        if self.k_min < K_MIN_FLOOR:
            problems.append(
                problem("FT925", f"k_min is at least {K_MIN_FLOOR}, got {self.k_min}", where="k_min")
            )
        if self.max_colluders < 0:
            problems.append(
                problem(
                    "FT925", f"max_colluders is at least 0, got {self.max_colluders}", where="max_colluders"
                )
            )
        for key in ("corrupt_fraction", "drop_fraction"):
            value = getattr(self, key)
            if not 0 < value < 1:
                problems.append(problem("FT925", f"{key} is between 0 and 1, got {value}", where=key))
        if not problems and self.corrupt_fraction + self.drop_fraction >= 1:
            problems.append(
                problem(
                    "FT925",
                    f"nobody honest is left: {self.corrupt_fraction} corrupt, {self.drop_fraction} dropped",
                    where="corrupt_fraction",
                )
            )
        for key in ("attempt_seconds", "hold_seconds"):
            value = getattr(self, key)
            if not 0 < value < float("inf"):
                problems.append(problem("FT925", f"{key} is positive, got {value}", where=key))
        if self.prg not in PRGS:
            problems.append(problem("FT925", f"prg is one of {PRGS}, got {self.prg!r}", where="prg"))
        if problems:
            raise SecureAggregationError(problems)
