"""A site as the federation sees it, and the one thing it remembers between rounds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from fedtune.config.schema import Config, Metric
from fedtune.errors import Problem, RunError
from fedtune.observability.disk import write_atomic

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

    from fedtune.data.tokenize import TokenizedExample
    from fedtune.federation.secure_site import SecureSite
    from fedtune.models.adapted import AdaptedModel
    from fedtune.training.train import StepReport, TrainingResult

__all__ = ["Site", "WalkPosition"]

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Site:
    """What a client needs to answer a server.

    Attributes:
        name: The site's name, unique in the federation.
        config: The configuration it works by.
        train: Rows to train on, tokenized; their order is the order of the data, not of training.
        held_out: Rows that never train anything.
        skipped_rows: Bad rows that were left out.
        state_dir: Folder of what it remembers between rounds.
        model: Gives the base model with an adapter; the same object at every call.
        threads: CPU threads of training and evaluation; they decide the rounding, so they are fixed.
        secure: What it has for secure aggregation; None where it takes no part.
        base_name: What the federation calls its base model, where that is not how this machine finds it.
        lie: What a false site of a simulation does to an update before it is sent; None everywhere else.
        own_model_dir: Where its own model is written after the last round, if it has one; None for nowhere.
        on_step: Told of the site, the round and of each optimizer step, for a progress display.
        on_microbatch: Called before each forward pass of an evaluation; what it raises ends it.
        trainer: Takes a round's steps in the place of `fedtune.training.train.train`, with its arguments: for
            measurements of all that is not training. None takes that one.
    """

    name: str
    config: Config
    train: Sequence[TokenizedExample]
    held_out: Sequence[TokenizedExample]
    skipped_rows: int
    state_dir: Path
    model: Callable[[], AdaptedModel]
    threads: int
    secure: SecureSite | None = None
    base_name: str | None = None
    lie: Callable[[ArrayRecord], ArrayRecord] | None = None
    own_model_dir: Path | None = None
    on_step: Callable[[str, int, StepReport], None] | None = None
    on_microbatch: Callable[[], object] | None = None
    trainer: Callable[..., TrainingResult] | None = None

    def told(self, metric: Metric, value: T) -> T | None:
        """Return a number if it may leave this site, else None."""
        return value if metric in self.config.federation.metrics else None


class WalkPosition:
    """How many optimizer steps of its walk a site has taken, kept by round on its own disk.

    A round that is asked for again (a retry, or a run resumed after its server was killed) starts where
    it started the first time, so it trains on the same examples and gives the same delta. The server
    neither sends nor sees the position: it cannot make a site train on the same rows twice.

    Guarantee: after a kill at any instant the file holds the state before or after a call of `advance`.
    """

    KEPT_ROUNDS = 8

    def __init__(self, state_dir: Path, site: str, *, kept: int = KEPT_ROUNDS) -> None:
        self._kept = kept
        self._path = state_dir / f"{quote(site, safe='')}.json"

    def before(self, round_number: int) -> int:
        """Return the steps taken in all rounds before this one."""
        earlier = {done: end for done, end in self._read().items() if done < round_number}
        return earlier[max(earlier)] if earlier else 0

    def advance(self, round_number: int, end: int) -> None:
        """Record that after this round ``end`` steps are taken; later rounds are forgotten."""
        kept = {done: at for done, at in self._read().items() if done < round_number}
        kept[round_number] = end
        newest = dict(sorted(kept.items())[-self._kept :])
        body = {"v": 1, "steps_after_round": {str(done): at for done, at in newest.items()}}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self._path, json.dumps(body).encode())

    def _read(self) -> dict[int, int]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        try:
            return _parse(text)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(
                Problem(
                    code="FT720",
                    what="the record of which examples were already used is damaged",
                    where=str(self._path),
                    fix="restore it from a backup, or start a run under another name",
                )
            ) from None


def _parse(text: str) -> dict[int, int]:
    body = json.loads(text)
    rounds = {int(done): int(at) for done, at in body["steps_after_round"].items()}
    if body["v"] != 1 or any(value < 0 for value in (*rounds, *rounds.values())):
        raise ValueError("another version, or a number below 0")
    return rounds
