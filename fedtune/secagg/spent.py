"""The journal of opened updates: one encoded update may take part in one opened sum, ever.

Two sums over cohorts that differ by one site give that site's update exactly. So before a client signs the
confirmation that lets a sum be opened, it writes down what the update was made of, and it never signs for
the same again, in any attempt, run or process. The journal holds hashes only, no secret.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedtune.secagg.fields import hex_bytes
from fedtune.secagg.ledger import Ledger
from fedtune.secagg.problems import refusal
from fedtune.secagg.wire import HASH_BYTES

__all__ = ["SpentJournal", "UpdateOrigin"]

_HASHES = ("base", "adapter", "config", "samples")


@dataclass(frozen=True, kw_only=True)
class UpdateOrigin:
    """What an update was made of; two updates of one origin are the same update.

    Attributes:
        base: H(base model), 32 bytes, like the others.
        adapter: H(adapter that training started from).
        config: H(what shapes training); the run's name and the round are no part of it.
        samples: H(the samples that were trained on).
    """

    base: bytes
    adapter: bytes
    config: bytes
    samples: bytes

    def as_json(self) -> dict[str, str]:
        return {key: getattr(self, key).hex() for key in _HASHES}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> UpdateOrigin:
        """The origin that a line of the journal is about.

        Raises:
            ValueError: A hash is missing or is none.
            TypeError: A hash has another type.
        """
        return cls(**{key: hex_bytes(line.get(key), HASH_BYTES) for key in _HASHES})


class SpentJournal:
    """A site's own journal file.

    Args:
        path: JSON lines; keep it for as long as the site's data is used, and back it up.
    """

    def __init__(self, path: Path) -> None:
        self._ledger = Ledger(path)

    def check(self, origin: UpdateOrigin) -> None:
        """Refuse early what `spend` would refuse.

        Raises:
            SecureAggregationError: FT912, it is spent; FT919, the journal is damaged.
        """
        self._refuse_spent(self._ledger.read(), origin)

    def holds(self, origin: UpdateOrigin) -> bool:
        """Say whether an update was opened and not released since.

        Raises:
            SecureAggregationError: FT919, the journal is damaged.
        """
        return _last(self._ledger.read(), origin) is not None

    def spend(self, origin: UpdateOrigin, *, run: str, round_number: int, attempt: int) -> None:
        """Write down, durably, that this update may now be opened; called before anything is signed.

        Raises:
            SecureAggregationError: FT912, it is spent already; FT919, the journal is damaged or cannot be
                written. In both cases nothing may be signed.
        """
        line = {
            "v": 1,
            "event": "spent",
            "time": time.time(),
            "run": run,
            "round": round_number,
            "attempt": attempt,
            **origin.as_json(),
        }
        self._ledger.append(line, unless=lambda lines: self._refuse_spent(lines, origin))

    def release(self, origin: UpdateOrigin, *, operator: str, reason: str) -> None:
        """Let an update be opened once more, on the word of the site's operator; the entry stays.

        Raises:
            SecureAggregationError: FT912, it was not spent, or the operator gave no name or reason.
        """

        def refuse(lines: list[dict[str, Any]]) -> None:
            if not (operator.strip() and reason.strip()):
                raise refusal("FT912", "a release needs the operator's name and a reason", where="release")
            if _last(lines, origin) is None:
                raise refusal("FT912", "this update was not spent, or is released already", where="release")

        line = {
            "v": 1,
            "event": "released",
            "time": time.time(),
            "operator": operator,
            "reason": reason,
            **origin.as_json(),
        }
        self._ledger.append(line, unless=refuse)

    def entries(self) -> list[dict[str, Any]]:
        """All lines, oldest first."""
        return self._ledger.read()

    def head(self) -> bytes:
        """Head of the journal's hash chain: whoever sees two of them notices lines that were taken out."""
        return self._ledger.head()

    def _refuse_spent(self, lines: list[dict[str, Any]], origin: UpdateOrigin) -> None:
        spent = _last(lines, origin)
        if spent is not None:
            raise refusal(
                "FT912",
                f"this update was opened in run {spent.get('run')}, round {spent.get('round')}, "
                f"attempt {spent.get('attempt')}",
                where=str(self._ledger.path),
            )


def _last(lines: list[dict[str, Any]], origin: UpdateOrigin) -> dict[str, Any] | None:
    """The entry that spent this origin, unless it was released since."""
    wanted = origin.as_json()
    found = None
    for line in lines:
        if all(line.get(key) == value for key, value in wanted.items()):
            found = line if line.get("event") == "spent" else None
    return found
